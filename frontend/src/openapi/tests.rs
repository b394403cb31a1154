//! The document says what is served: every route, and every field that a reader takes.

use std::{cell::RefCell, collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use super::document;
use crate::tests::{
    embeddings::embeds,
    script::{Script, TestServer, says},
};

thread_local! {
    /// Names of fields that readers of this thread took.
    static TAKEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// A reader looks for this field.
pub fn note(name: String) {
    TAKEN.with(|taken| taken.borrow_mut().insert(name));
}

/// Paths in the sources of the routers, as the document writes them.
fn routed(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routed(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let routes = text.split(".route(\"").skip(1);
            into.extend(routes.map(|rest| rest.split('"').next().unwrap().replace("{*", "{")));
        }
    }
}

#[test]
fn every_route_is_described_and_no_other() {
    let mut expected = BTreeSet::new();
    routed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut expected);
    let document = document();
    let found: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_is_described_is_routed_with_its_method_and_served() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let served: Value = server.get("/openapi.json").await.json().await.unwrap();
    assert_eq!(served, document());
    for (path, methods) in served["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "mock");
            let response = match method.as_str() {
                "get" => server.get(&path).await,
                "delete" => server.client.delete(format!("{}{path}", server.base)).send().await.unwrap(),
                _ => server.post(&path, &json!({})).await,
            };
            assert_ne!(response.status(), 405, "{method} {path}");
            if response.status() == 404 {
                let error = response.json::<Value>().await.unwrap();
                // There is the route, but not the thing.
                assert!(
                    error["error"]["message"].as_str().unwrap().contains("`mock`"),
                    "{method} {path}: {error}"
                );
            }
        }
    }
}

#[test]
fn every_reference_is_to_something_and_everything_is_referred_to() {
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let components = document["components"]["schemas"].as_object().unwrap();
    let expected: BTreeSet<_> =
        components.keys().map(|name| format!("#/components/schemas/{name}")).collect();
    assert_eq!(found, expected);
}

fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            into.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

/// Names in a component, with `prefix` before them.
fn described(component: &str, prefix: &str) -> BTreeSet<String> {
    let document = document();
    let properties = &document["components"]["schemas"][component]["properties"];
    let names = properties.as_object().unwrap_or_else(|| panic!("no {component}")).keys();
    names.map(|name| format!("{prefix}{name}")).collect()
}

/// A body, and which components describe what stands where in it.
type Described = (&'static str, Value, &'static [(&'static str, &'static str)]);

fn bodies() -> Vec<Described> {
    let turns = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let called = json!({"role": "assistant", "tool_calls": [call]});
    let returned = json!({"role": "tool", "tool_call_id": "c", "content": "1"});
    vec![
        ("/v1/chat/completions", json!({"model": "mock", "messages": turns}), &[("ChatBody", "")]),
        (
            "/v1/chat/completions",
            json!({"model": "mock", "messages": turns, "stream": true, "stream_options": {}}),
            &[
                ("StreamOptions", "stream_options."),
                ("ChatTurn", "messages[0]."),
                ("TextPart", "messages[0].content[0]."),
            ],
        ),
        (
            "/v1/chat/completions",
            json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}, called, returned]}),
            &[("AssistantTurn", "messages[1]."), ("ToolTurn", "messages[2].")],
        ),
        ("/v1/completions", json!({"model": "mock", "prompt": "hi"}), &[("CompletionBody", "")]),
        ("/v1/embeddings", json!({"model": "mock", "input": "hi"}), &[("EmbeddingBody", "")]),
        (
            "/v1/messages",
            json!({"model": "mock", "messages": turns, "max_tokens": 4, "metadata": {}}),
            &[
                ("MessagesBody", ""),
                ("AnthropicTurn", "messages[0]."),
                ("AnthropicPart", "messages[0].content[0]."),
                ("Metadata", "metadata."),
            ],
        ),
        ("/v1/messages/count_tokens", json!({"model": "mock", "messages": turns}), &[("CountBody", "")]),
        ("/generate", json!({"inputs": "hi"}), &[("GenerateBody", ""), ("TgiParameters", "parameters.")]),
        ("/generate_stream", json!({"inputs": "hi"}), &[("StreamBody", "")]),
        ("/", json!({"inputs": "hi"}), &[("EitherBody", "")]),
        ("/generate", json!({"text": "hi"}), &[("SglangBody", ""), ("SamplingParams", "sampling_params.")]),
        ("/tokenize", json!({"inputs": "hi"}), &[("TgiTokenizeBody", "")]),
        ("/tokenize", json!({"prompt": "hi"}), &[("TokenizeBody", "")]),
        ("/tokenize", json!({"messages": turns}), &[("TokenizeChatBody", "")]),
        ("/detokenize", json!({"tokens": [65]}), &[("DetokenizeBody", "")]),
    ]
}

/// Bodies about what is kept; `file` is.
fn bodies_about_kept(file: &str) -> Vec<Described> {
    vec![
        (
            "/v1/responses",
            json!({"model": "mock", "input": "hi", "stream": true, "stream_options": {}}),
            &[
                ("ResponseBody", ""),
                ("ResponseStreamOptions", "stream_options."),
                ("TextForm", "text."),
                ("Reasoning", "reasoning."),
            ],
        ),
        (
            "/v1/responses",
            json!({"model": "mock", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}),
            &[("InputMessage", "input[0]."), ("InputPart", "input[0].content[0].")],
        ),
        (
            "/v1/batches",
            json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}),
            &[("BatchBody", ""), ("OutputExpiry", "output_expires_after.")],
        ),
    ]
}

#[tokio::test]
async fn the_fields_described_are_those_that_are_read() {
    let script =
        Script::new(|request| Ok(if request.embedding.is_some() { embeds(request) } else { says(&["ok"]) }));
    let server = TestServer::start(script).await;
    let file = crate::files::tests::keep(&server, "{}").await;
    for (path, body, components) in bodies().into_iter().chain(bodies_about_kept(&file)) {
        TAKEN.with(|taken| taken.borrow_mut().clear());
        let response = server.post(path, &body).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{path} {body}: {text}");
        let taken = TAKEN.with(|taken| taken.borrow().clone());
        for (component, prefix) in components {
            let is_direct =
                |name: &&String| name.strip_prefix(prefix).is_some_and(|rest| !rest.contains(['.', '[']));
            let read: BTreeSet<_> = taken.iter().filter(is_direct).cloned().collect();
            let described = described(component, prefix);
            let [missing, unread] = [&read - &described, &described - &read];
            let differ = !missing.is_empty() || !unread.is_empty();
            assert!(!differ, "{component}: not described {missing:?}, not read {unread:?}");
        }
    }
}

#[test]
fn headers_of_patience_stand_at_every_call_for_an_answer() {
    let document = document();
    let headers = |path: &str| {
        let parameters = document["paths"][path]["post"]["parameters"].as_array();
        let names = parameters.into_iter().flatten().map(|parameter| parameter["name"].as_str().unwrap());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let answering = headers("/v1/chat/completions");
    assert!(answering.contains("x-baton-itl-ms") && answering.len() == 6, "{answering:?}");
    for path in ["/v1/completions", "/v1/embeddings", "/v1/messages", "/generate", "/generate_stream", "/"] {
        assert_eq!(headers(path), answering, "{path}");
    }
    assert_eq!(headers("/tokenize"), BTreeSet::new());
}
