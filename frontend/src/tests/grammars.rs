//! What an answer must be, in every dialect's words.

use baton_protocol::GrammarKind;
use serde_json::{Value, json};

use super::script::{Script, TestServer, says};
use crate::Config;

const CHAT: &str = "/v1/chat/completions";

fn body(path: &str, more: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}]}),
        "/v1/completions" => json!({"model": "mock", "prompt": "hi"}),
        "/generate" if more.get("parameters").is_some() => json!({"inputs": "hi"}),
        _ => json!({"text": "hi"}),
    };
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn every_dialect_says_it_in_its_own_words() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "integer"}, "a": {}}});
    let written = schema.to_string();
    assert!(written.find("\"z\"") < written.find("\"a\""), "the client's order is kept: {written}");
    let json = (GrammarKind::Json, written.as_str());
    let (regex, lark) = ((GrammarKind::Regex, "a+"), (GrammarKind::Lark, "start: \"x\"+"));
    let choice = (GrammarKind::Lark, "start: CHOICE\nCHOICE: \"a\\\"b\" | \"ä\"\n");
    let object = (GrammarKind::Json, r#"{"type":"object"}"#);
    let named = json!({"name": "n", "schema": schema, "strict": true, "description": "d"});
    let cases = [
        (CHAT, json!({"response_format": {"type": "json_schema", "json_schema": named}}), json),
        (CHAT, json!({"response_format": {"type": "json_object"}}), object),
        ("/v1/completions", json!({"response_format": {"type": "json_object"}}), object),
        (CHAT, json!({"guided_json": schema}), json),
        (CHAT, json!({"guided_json": written}), json),
        (CHAT, json!({"guided_regex": "a+"}), regex),
        (CHAT, json!({"guided_choice": ["a\"b", "ä"]}), choice),
        (CHAT, json!({"guided_grammar": "start: \"x\"+"}), lark),
        ("/v1/completions", json!({"structured_outputs": {"json": schema}}), json),
        (CHAT, json!({"structured_outputs": {"regex": "a+"}}), regex),
        (CHAT, json!({"structured_outputs": {"choice": ["a\"b", "ä"]}}), choice),
        (CHAT, json!({"structured_outputs": {"grammar": "start: \"x\"+"}}), lark),
        (CHAT, json!({"structured_outputs": {"json_object": true}}), object),
        ("/generate", json!({"sampling_params": {"json_schema": written}}), json),
        ("/generate", json!({"sampling_params": {"regex": "a+"}}), regex),
        ("/generate", json!({"sampling_params": {"ebnf": "start: \"x\"+"}}), lark),
        ("/generate", json!({"parameters": {"grammar": {"type": "json", "value": schema}}}), json),
        ("/generate", json!({"parameters": {"grammar": {"type": "regex", "value": "a+"}}}), regex),
        (
            "/generate",
            json!({"parameters": {"grammar": {"type": "json_schema", "value": {"schema": schema}}}}),
            json,
        ),
    ];
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (path, more, (kind, source)) in cases {
        let response = server.post(path, &body(path, &more)).await;
        let status = response.status();
        assert_eq!(status, 200, "{more}: {}", response.text().await.unwrap());
        let asked = server.script.asked.lock().pop().unwrap();
        let grammar = asked.sampling.grammar.unwrap();
        assert_eq!((grammar.kind, grammar.source.as_str()), (kind, source), "{more}");
    }
    let text = body(CHAT, &json!({"response_format": {"type": "text"}}));
    assert_eq!(server.chat(&text).await.status(), 200);
    assert_eq!(server.script.asked.lock().pop().unwrap().sampling.grammar, None);
}

#[tokio::test]
async fn what_no_answer_can_be_held_to_is_refused_by_name() {
    let named =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let deep = (0..49).fold(json!({}), |inner, _| json!({"items": inner}));
    let cases = [
        (CHAT, json!({"response_format": "json"}), "response_format"),
        (CHAT, json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (CHAT, json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (CHAT, json!({"response_format": named(json!(5))}), "response_format.json_schema.schema"),
        (CHAT, json!({"response_format": named(json!({"type": "x"}))}), "response_format.json_schema.schema"),
        (
            CHAT,
            json!({"response_format": named(json!({"$ref": "http://a/b"}))}),
            "response_format.json_schema.schema",
        ),
        (CHAT, json!({"response_format": named(deep)}), "response_format.json_schema.schema"),
        (CHAT, json!({"guided_json": "{"}), "guided_json"),
        (CHAT, json!({"guided_regex": "("}), "guided_regex"),
        (CHAT, json!({"guided_regex": ["a"]}), "guided_regex"),
        (CHAT, json!({"guided_choice": []}), "guided_choice"),
        (CHAT, json!({"guided_choice": ["a", ""]}), "guided_choice"),
        (CHAT, json!({"guided_choice": "a"}), "guided_choice"),
        (CHAT, json!({"guided_grammar": "root ::= \"a\""}), "guided_grammar"),
        (CHAT, json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
        (CHAT, json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        (CHAT, json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos"),
        (CHAT, json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
        (CHAT, json!({"guided_decoding_backend": "outlines"}), "guided_decoding_backend"),
        (CHAT, json!({"structured_outputs": {"structural_tag": "a"}}), "structured_outputs.structural_tag"),
        ("/generate", json!({"sampling_params": {"regex": "a", "ebnf": "b"}}), "sampling_params.ebnf"),
        ("/generate", json!({"sampling_params": {"ebnf": "root ::= \"a\""}}), "sampling_params.ebnf"),
        (
            "/generate",
            json!({"parameters": {"grammar": {"type": "x", "value": "a"}}}),
            "parameters.grammar.type",
        ),
        (
            "/generate",
            json!({"parameters": {"grammar": {"type": "regex", "value": "("}}}),
            "parameters.grammar.value",
        ),
    ];
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (path, more, param) in cases {
        let response = server.post(path, &body(path, &more)).await;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert!([400, 422].contains(&status) && text.contains(param), "{more}: {status} {text}");
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn limits_of_grammars_are_settings_and_named() {
    let config = Config { max_grammar_bytes: 20, max_schema_depth: 2, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    for (more, setting) in [
        (json!({"guided_regex": "a".repeat(21)}), "max_grammar_bytes"),
        (json!({"guided_json": {"a": {"b": {"c": 1}}}}), "max_schema_depth"),
    ] {
        let response = server.post(CHAT, &body(CHAT, &more)).await;
        assert_eq!(response.status(), 400);
        let text = response.text().await.unwrap();
        assert!(text.contains(&format!("(frontend.{setting})")), "{text}");
    }
    let within = body(CHAT, &json!({"guided_regex": "a".repeat(20)}));
    assert_eq!(server.chat(&within).await.status(), 200);
}
