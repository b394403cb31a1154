//! Calls that are answered as server-sent events.

use baton_protocol::{ErrorCode, Event, Failure, FinishReason, Token};
use futures::StreamExt;
use serde_json::{Value, json};

use super::script::{Script, TestServer, bytes, says};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(changes: &[(&str, Value)]) -> Value {
    let mut body = json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    for (field, value) in changes {
        body[*field] = value.clone();
    }
    body
}

/// The JSON of all events but the closing mark.
fn chunks(payloads: &[String]) -> Vec<Value> {
    let (done, chunks) = payloads.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

/// Text of one choice, put together.
fn text_of(chunks: &[Value], index: u64) -> String {
    let choices =
        chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|choice| choice["index"] == index);
    choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_chat_stream_has_role_text_finish_usage_done() {
    let server = TestServer::start(Script::saying(says(&["ab"]))).await;
    let events = server.events(CHAT, &chat(&[("stream_options", json!({"include_usage": true}))])).await;
    let chunks = chunks(&events);
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    let expected = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"content": "a"}), Value::Null),
        choice(json!({"content": "b"}), Value::Null),
        choice(json!({}), json!("length")),
        json!([]),
    ];
    let found: Vec<_> = chunks.iter().map(|chunk| chunk["choices"].clone()).collect();
    assert_eq!(found, expected);
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 2);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 5);
    for chunk in before {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], last["id"]);
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
    }
    let plain = server.events(CHAT, &chat(&[])).await;
    assert!(plain.iter().all(|event| !event.contains("usage")));
}

#[tokio::test]
async fn a_completions_stream_has_text_and_finish() {
    let server = TestServer::start(Script::saying(says(&["ab"]))).await;
    let body = json!({"model": "mock", "prompt": ["x", "y"], "stream": true});
    let chunks = chunks(&server.events(COMPLETIONS, &body).await);
    for index in [0, 1] {
        let own: Vec<_> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        let texts: Vec<_> = own.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["a", "b", ""]);
        assert_eq!(own[2]["finish_reason"], "length");
    }
    assert_eq!(chunks[0]["object"], "text_completion");
}

#[tokio::test]
async fn choices_come_interleaved_as_their_tokens_do() {
    let finished = |choice| Event::Finished { choice, reason: FinishReason::Stop };
    let mixed = bytes(0, "abc").into_iter().zip(bytes(1, "xyz")).flat_map(|(a, b)| [a, b]);
    let events = mixed.chain([finished(1), finished(0)]).collect();
    let server = TestServer::start(Script::saying(events)).await;
    let chunks = chunks(&server.events(CHAT, &chat(&[("n", json!(2))])).await);
    let order: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1, 1, 0]);
    assert_eq!((text_of(&chunks, 0).as_str(), text_of(&chunks, 1).as_str()), ("abc", "xyz"));
}

#[tokio::test]
async fn characters_are_never_cut() {
    let server = TestServer::start(Script::saying(says(&["a👩‍🚀é"]))).await;
    let chunks = chunks(&server.events(CHAT, &chat(&[])).await);
    let texts: Vec<_> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(texts, ["", "a", "👩", "\u{200d}", "🚀", "é"]);
}

#[tokio::test]
async fn stop_strings_hold_back_only_what_could_become_one() {
    let server = TestServer::start(Script::saying(says(&["a\nb\n\nc"]))).await;
    let chunks = chunks(&server.events(CHAT, &chat(&[("stop", json!("\n\n"))])).await);
    let texts: Vec<_> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(texts, ["", "a", "\nb"]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn every_token_has_its_log_probability_even_without_text() {
    let token =
        |position, id| Event::Token(Token { choice: 0, position, id, logprob: Some(-1.0), top: Vec::new() });
    let events =
        vec![token(0, 0xc3), token(1, 0xa9), Event::Finished { choice: 0, reason: FinishReason::Stop }];
    let server = TestServer::start(Script::saying(events)).await;
    let chunks = chunks(&server.events(CHAT, &chat(&[("logprobs", json!(true))])).await);
    let with_tokens: Vec<_> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .filter(|choice| choice["logprobs"].is_object())
        .map(|choice| (&choice["delta"]["content"], &choice["logprobs"]["content"][0]["bytes"]))
        .collect();
    assert_eq!(with_tokens, [(&json!(""), &json!([0xc3])), (&json!("é"), &json!([0xa9]))]);
}

#[tokio::test]
async fn a_failure_in_the_middle_ends_the_stream_without_done() {
    let mut events = bytes(0, "ab");
    events.push(Event::Failed(Failure::new(ErrorCode::PeerLost, "the decode node was lost")));
    let server = TestServer::start(Script::saying(events)).await;
    let events = server.events(CHAT, &chat(&[])).await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "peer_lost");
    assert_eq!(last["error"]["type"], "service_unavailable_error");
    assert!(events.iter().all(|event| event != "[DONE]"));
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("http_broken_streams_total 1"));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure() {
    let server = TestServer::start(Script::saying(bytes(0, "ab"))).await;
    let events = server.events(CHAT, &chat(&[])).await;
    assert!(events.last().unwrap().contains("\"internal\""));
    let response = server.chat(&chat(&[("stream", json!(false))])).await;
    assert_eq!(response.status(), 500);
}

#[tokio::test]
async fn text_flows_while_the_answer_is_open() {
    let server = TestServer::start(Script::holding(bytes(0, "ab"))).await;
    let mut parts = server.chat(&chat(&[])).await.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("\"content\":\"b\"") {
        seen.push_str(std::str::from_utf8(&parts.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(!seen.contains("[DONE]"));
}

#[tokio::test]
async fn a_client_that_leaves_drops_the_answer() {
    let server = TestServer::start(Script::holding(bytes(0, "ab"))).await;
    let response = server.chat(&chat(&[])).await;
    assert_eq!(response.status(), 200);
    drop(response);
    server.script.dropped(1).await;
}
