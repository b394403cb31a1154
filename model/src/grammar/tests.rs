use baton_protocol::GrammarKind;
use serde_json::{Value, json};

use super::*;

const EOS: u32 = 257;

fn grammar(kind: GrammarKind, source: &str) -> Arc<Grammar> {
    Arc::new(Grammar { kind, source: source.to_owned() })
}

fn begin(kind: GrammarKind, source: &str) -> Result<GrammarState, GrammarError> {
    ModelText::mock().grammars().unwrap().begin(&grammar(kind, source))
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn allows(state: &mut GrammarState, token: u32) -> bool {
    state.mask().unwrap()[token as usize / 32] >> (token % 32) & 1 == 1
}

/// Whether the whole text is an answer: every byte may come, and then the end.
fn accepts(kind: GrammarKind, source: &str, text: &str) -> bool {
    let mut state = begin(kind, source).unwrap();
    for token in bytes(text) {
        if !allows(&mut state, token) {
            return false;
        }
        state.advance(&[token]).unwrap();
    }
    allows(&mut state, EOS)
}

#[test]
fn schemas_let_in_what_they_accept_and_nothing_else() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
    })
    .to_string();
    let accepts = |text| accepts(GrammarKind::Json, &schema, text);
    assert!(accepts(r#"{"name":"äx","tags":["a","b"]}"#));
    assert!(accepts(r#"{"name": "x", "tags": []}"#));
    for wrong in [
        r#"{"name":"x"}"#,
        r#"{"name":"abcdef","tags":[]}"#,
        r#"{"name":"x","tags":["c"]}"#,
        r#"{"name":"x","tags":["a","a","a"]}"#,
        r#"{"name":"x","tags":[]} "#,
        r#"{ "name":"x","tags":[]}"#,
    ] {
        assert!(!accepts(wrong), "{wrong}");
    }
}

#[test]
fn references_and_alternatives_are_followed() {
    let schema = json!({
        "$defs": {"tree": {"type": "object", "additionalProperties": false, "required": ["v"],
            "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}}}},
        "$ref": "#/$defs/tree",
    })
    .to_string();
    assert!(accepts(GrammarKind::Json, &schema, r#"{"v":1,"next":{"v":2,"next":null}}"#));
    assert!(!accepts(GrammarKind::Json, &schema, r#"{"v":1,"next":{"v":20}}"#));
}

#[test]
fn regular_expressions_match_the_whole_answer() {
    for (regex, text, expected) in [
        (r"[0-9]{3}-[a-z]+", "123-abc", true),
        (r"[0-9]{3}-[a-z]+", "123-", false),
        (r"^a/b\/c$", "a/b/c", true),
        (r"(yes|no)", "yes", true),
        (r"(yes|no)", "yesno", false),
        (r"x\$", "x$", true),
        (r"\d\d", "٣1", true),
    ] {
        assert_eq!(accepts(GrammarKind::Regex, regex, text), expected, "{regex} {text}");
    }
}

#[test]
fn lark_grammars_are_context_free() {
    let lark = "start: \"(\" start \")\" | \"x\"";
    assert!(accepts(GrammarKind::Lark, lark, "((x))"));
    assert!(!accepts(GrammarKind::Lark, lark, "((x)"));
}

#[test]
fn a_state_is_what_its_tokens_make_it() {
    let schema = r#"{"type":"array","items":{"type":"integer"},"maxItems":3}"#;
    let text = bytes("[1,23,");
    let mut whole = begin(GrammarKind::Json, schema).unwrap();
    whole.advance(&text).unwrap();
    let mut stepped = begin(GrammarKind::Json, schema).unwrap();
    for token in text {
        stepped.mask().unwrap();
        stepped.advance(&[token]).unwrap();
    }
    let mut copy = stepped.clone();
    assert_eq!(whole.mask(), stepped.mask());
    copy.advance(&bytes("4]")).unwrap();
    assert!(allows(&mut copy, EOS) && !allows(&mut stepped, EOS));
    assert!(matches!(stepped.advance(&bytes("x")), Err(GrammarError::Stuck { .. })));
}

#[test]
fn what_is_no_grammar_is_refused_with_words() {
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    let product = json!({"allOf": (0..24).map(|i| json!({"anyOf": (0..24).map(|j|
        json!({"properties": {format!("p{i}x{j}"): {"type": "string"}}})).collect::<Vec<_>>()})).collect::<Vec<_>>()});
    let cases = [
        (GrammarKind::Json, "{".to_owned()),
        (GrammarKind::Json, "7".to_owned()),
        (GrammarKind::Json, "false".to_owned()),
        (GrammarKind::Json, deep),
        (GrammarKind::Json, r#"{"type":"strnig"}"#.to_owned()),
        (GrammarKind::Json, r#"{"$ref":"http://example.com/schema"}"#.to_owned()),
        (GrammarKind::Json, r##"{"$ref":"#/$defs/none"}"##.to_owned()),
        (GrammarKind::Json, r#"{"type":"string","pattern":"("}"#.to_owned()),
        (GrammarKind::Json, r#"{"not":{"type":"string"}}"#.to_owned()),
        (GrammarKind::Json, r#"{"type":"object","required":["a"],"properties":{"a":false}}"#.to_owned()),
        (GrammarKind::Json, product.to_string()),
        (GrammarKind::Regex, "(".to_owned()),
        (GrammarKind::Regex, r"a\".to_owned()),
        (GrammarKind::Regex, "^$".to_owned()),
        (GrammarKind::Regex, r"(?=a)b".to_owned()),
        (GrammarKind::Lark, "start: nothing".to_owned()),
        (GrammarKind::Lark, "root ::= \"a\"".to_owned()),
        (GrammarKind::Lark, String::new()),
    ];
    for (kind, source) in cases {
        match begin(kind, &source) {
            Err(GrammarError::Source { reason }) => {
                assert!(!reason.is_empty() && reason.len() <= 4 * MAX_REASON, "{reason}");
            }
            other => panic!("{kind:?} {source:.80}: {other:?}"),
        }
    }
}

/// Whatever it costs others, it ends: refused, stuck at a limit, or a mask for each token.
#[test]
fn what_explodes_comes_to_an_end() {
    for source in [
        "((((a{100}){100}){100}){100}){100}".to_owned(),
        "(.*a.{40}|.*b.{40}|.*c.{40}){50}".repeat(20),
        "(a?){200}a{200}".to_owned(),
        "([ab]*a[ab]{30})+".to_owned(),
    ] {
        let Ok(mut state) = begin(GrammarKind::Regex, &source) else { continue };
        for token in bytes(&"ab".repeat(100)) {
            if state.mask().is_err() || !allows(&mut state, token) || state.advance(&[token]).is_err() {
                break;
            }
        }
    }
}

#[test]
fn only_the_last_few_grammars_are_kept() {
    let text = ModelText::mock();
    let grammars = text.grammars().unwrap();
    for i in 0..KEPT + 5 {
        grammars.begin(&grammar(GrammarKind::Regex, &format!("x{i}"))).unwrap();
        grammars.begin(&grammar(GrammarKind::Regex, "x0")).unwrap();
    }
    let compiled = grammars.compiled.lock();
    assert_eq!(compiled.len(), KEPT);
    assert_eq!(compiled.last().unwrap().0.source, "x0");
}

#[test]
fn dates_are_days_that_there_are() {
    let holds =
        |schema: Value, text: &str| accepts(GrammarKind::Json, &schema.to_string(), &format!("\"{text}\""));
    let date = || json!({"type": "string", "format": "date"});
    for (text, is_day) in [
        ("2024-02-29", true),
        ("2000-02-29", true),
        ("1945-02-29", false),
        ("1900-02-29", false),
        ("0000-01-01", false),
        ("0001-12-31", true),
        ("2026-04-31", false),
        ("2026-11-26", true),
    ] {
        assert_eq!(holds(date(), text), is_day, "{text}");
        let at = json!({"type": "string", "format": "date-time"});
        assert_eq!(holds(at, &format!("{text}T23:59:59Z")), is_day, "{text}");
    }
    assert!(!holds(json!({"type": "string", "format": "time"}), "23:59:60Z"));
    // Beside a pattern, below other keywords, and not where it is no keyword.
    let of_may = json!({"allOf": [{"type": "string", "format": "date", "pattern": "-05-"}]});
    assert!(holds(of_may.clone(), "2026-05-01") && !holds(of_may.clone(), "2026-06-01"));
    assert!(!holds(of_may, "2026-05-32"));
    let named = json!({"type": "object", "required": ["format"], "additionalProperties": false,
        "properties": {"format": {"const": {"format": "date"}}}});
    assert!(accepts(GrammarKind::Json, &named.to_string(), r#"{"format":{"format":"date"}}"#));
}

/// As long as fits into the 64 KiB that a call may bring.
#[test]
fn chains_of_references_are_followed_to_their_end() {
    let chain = |link: fn(usize) -> String, last: &str| {
        let links = (0..).map(link).scan(0, |bytes, link| {
            *bytes += link.len();
            (*bytes < 60_000).then_some(link)
        });
        let links: Vec<_> = links.collect();
        links.concat() + &last.replace('#', &links.len().to_string())
    };
    let rules = chain(|i| format!("r{i}:r{}\n", i + 1), "r#:\"a\"\nstart:r0\n");
    let terminals = chain(|i| format!("T{i}:T{}\n", i + 1), "T#:\"a\"\nstart:T0\n");
    for (kind, source, text) in [(GrammarKind::Lark, rules, "a"), (GrammarKind::Lark, terminals, "a")] {
        assert!(accepts(kind, &source, text));
    }
    let references = chain(|i| format!("\"{i}\":{{\"$ref\":\"#/$defs/{}\"}},", i + 1), "\"#\":{}");
    let schema = format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{references}}}}}");
    assert!(accepts(GrammarKind::Json, &schema, "1"));
}
