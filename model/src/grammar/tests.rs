use baton_protocol::GrammarKind;
use serde_json::json;

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
