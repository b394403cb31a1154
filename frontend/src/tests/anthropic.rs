//! Anthropic's routes.

use baton_protocol::{ErrorCode, Event, Failure, FinishReason};
use serde_json::{Value, json};

use super::script::{Script, TestServer, bytes, says};

const MESSAGES: &str = "/v1/messages";

fn body(changes: &Value) -> Value {
    let mut body =
        json!({"model": "mock", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]});
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => body.as_object_mut().unwrap().remove(field),
            value => body.as_object_mut().unwrap().insert(field.clone(), value.clone()),
        };
    }
    body
}

/// Names and payloads of all events.
async fn events(server: &TestServer, changes: &Value) -> Vec<(String, Value)> {
    let mut body = body(changes);
    body["stream"] = json!(true);
    let response = server.post(MESSAGES, &body).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.trim_end().split("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_whole_message_has_anthropics_shape() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    let system = json!([{"type": "text", "text": "brief", "cache_control": {"type": "ephemeral"}}]);
    let response =
        server.post(MESSAGES, &body(&json!({"system": system, "metadata": {"user_id": "me"}}))).await;
    let id = response.headers()["request-id"].to_str().unwrap().to_owned();
    let message: Value = response.json().await.unwrap();
    let prompt_tokens = server.script.asked.lock()[0].tokens.len();
    assert_eq!(
        message,
        json!({"id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": "mock",
            "content": [{"type": "text", "text": "hello"}], "stop_reason": "max_tokens", "stop_sequence": null,
            "usage": {"input_tokens": prompt_tokens - 5, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 5, "output_tokens": 5}})
    );
}

#[tokio::test]
async fn a_stream_has_every_event_in_its_order() {
    let server = TestServer::start(Script::saying(says(&["ab"]))).await;
    let found = events(&server, &json!({})).await;
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    let deltas = ["content_block_delta"; 2];
    let expected =
        [["message_start", "content_block_start"], deltas, ["content_block_stop", "message_delta"]];
    assert_eq!(names, [expected.concat(), vec!["message_stop"]].concat());
    let prompt_tokens = server.script.asked.lock()[0].tokens.len();
    let message = &found[0].1["message"];
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(message["usage"]["input_tokens"], prompt_tokens - 3, "three are cached, as far as is known");
    let texts: Vec<_> = found[2..4].iter().map(|(_, event)| &event["delta"]).collect();
    assert_eq!(
        texts,
        [&json!({"type": "text_delta", "text": "a"}), &json!({"type": "text_delta", "text": "b"})]
    );
    assert_eq!(found[5].1["delta"], json!({"stop_reason": "max_tokens", "stop_sequence": null}));
    assert_eq!(found[5].1["usage"]["output_tokens"], 2);
}

#[tokio::test]
async fn ends_are_told_apart() {
    let mut said = bytes(0, "one. two");
    said.push(Event::Finished { choice: 0, reason: FinishReason::Stop });
    let server = TestServer::start(Script::saying(said)).await;
    let turn = server.answered(MESSAGES, &body(&json!({}))).await;
    assert_eq!((&turn["stop_reason"], &turn["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let stopped = server.answered(MESSAGES, &body(&json!({"stop_sequences": ["!", "."]}))).await;
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(".")));
    assert_eq!(stopped["content"][0]["text"], "one");
}

#[tokio::test]
async fn an_answer_that_is_begun_goes_on() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let begun = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]);
    server.answered(MESSAGES, &body(&json!({"messages": begun}))).await;
    let continued = json!({"model": "mock", "continue_final_message": true,
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so"}]});
    server.answered("/v1/chat/completions", &continued).await;
    let asked = server.script.asked.lock();
    assert_eq!(asked[0].tokens, asked[1].tokens);
}

#[tokio::test]
async fn counting_counts_what_a_message_would_use() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let mut counted = body(&json!({"max_tokens": null, "system": "brief"}));
    let count = server.answered("/v1/messages/count_tokens", &counted).await;
    counted["max_tokens"] = json!(5);
    server.answered(MESSAGES, &counted).await;
    assert_eq!(count, json!({"input_tokens": server.script.asked.lock()[0].tokens.len()}));
}

#[tokio::test]
async fn refusals_are_anthropics_and_name_the_field() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (change, field) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"model": null}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"stop_sequences": ["a", "b", "c", "d", "e"]}), "stop_sequences"),
        (json!({"tools": [{"name": "f", "type": "bash_20250124"}]}), "tools[0].type"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
        (json!({"metadata": {"x": 1}}), "metadata.x"),
        (
            json!({"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}),
            "system[0].cache_control.ttl",
        ),
        (json!({"max_tokens": 1_000_000}), "prompt tokens and 1000000"),
    ] {
        let response = server.post(MESSAGES, &body(&change)).await;
        assert_eq!(response.status(), 400, "{change}");
        let id = response.headers()["request-id"].to_str().unwrap().to_owned();
        let error: Value = response.json().await.unwrap();
        assert_eq!((&error["type"], &error["request_id"]), (&json!("error"), &json!(id)));
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{change}: {error}");
    }
    let unknown = server.post(MESSAGES, &body(&json!({"model": "x"}))).await;
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.json::<Value>().await.unwrap()["error"]["type"], "not_found_error");
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn failures_have_their_names_before_and_within_a_stream() {
    let failure = Failure::new(ErrorCode::Unavailable, "no node");
    let refusing = failure.clone();
    let server = TestServer::start(Script::new(move |_| Err(refusing.clone()))).await;
    let response = server.post(MESSAGES, &body(&json!({"stream": true}))).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], "overloaded_error");
    let mut broken = bytes(0, "a");
    broken.push(Event::Failed(failure));
    let server = TestServer::start(Script::saying(broken)).await;
    let found = events(&server, &json!({})).await;
    let (name, last) = found.last().unwrap();
    assert_eq!((name.as_str(), &last["error"]["type"]), ("error", &json!("overloaded_error")));
}
