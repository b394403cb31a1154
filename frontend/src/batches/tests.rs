//! Batches over real sockets, with a script instead of a cluster.

use std::collections::BTreeMap;

use baton_protocol::{ErrorCode, Event, Failure, FinishReason};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::BatchLimits;
use crate::{
    Config,
    files::tests::{get, keep},
    tests::script::{Script, TestServer, bytes, says, soon},
};

fn line(id: &str, content: &str) -> String {
    let body = json!({"model": "mock", "messages": [{"role": "user", "content": content}]});
    call(id, &body)
}

fn call(id: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string()
}

fn asks(file: &str) -> Value {
    json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"})
}

/// Begins a batch of these lines; returns it.
async fn begin(server: &TestServer, lines: &[String]) -> Value {
    let file = keep(server, &lines.join("\n")).await;
    server.answered("/v1/batches", &asks(&file)).await
}

fn path(batch: &Value) -> String {
    format!("/v1/batches/{}", batch["id"].as_str().unwrap())
}

/// The batch when it is so.
async fn when(server: &TestServer, batch: &Value, holds: impl Fn(&Value) -> bool) -> Value {
    let held = async {
        loop {
            let batch = get(server, &path(batch)).await;
            if holds(&batch) {
                return batch;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(held).await
}

async fn ended(server: &TestServer, batch: &Value, status: &'static str) -> Value {
    when(server, batch, |batch| {
        let found = batch["status"].as_str().unwrap();
        let is_over = ["failed", "completed", "expired", "cancelled"].contains(&found);
        assert!(!is_over || found == status, "{batch}");
        is_over
    })
    .await
}

/// The lines of a file by their ids.
async fn lines(server: &TestServer, file: &Value) -> BTreeMap<String, Value> {
    let content = server.get(&format!("/v1/files/{}/content", file.as_str().unwrap())).await;
    let read = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let text = content.text().await.unwrap();
    text.lines().map(read).map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line)).collect()
}

#[tokio::test]
async fn a_batch_is_answered_line_by_line() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    let wrong = json!({"model": "mock", "messages": [], "temperature": 1});
    let streams = json!({"model": "mock", "messages": [{"role": "user", "content": "x"}], "stream": true});
    let calls = [line("a", "1"), String::new(), line("b", "2"), call("c", &wrong), call("d", &streams)];
    let begun = begin(&server, &calls).await;
    let batch = ended(&server, &begun, "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 4, "completed": 2, "failed": 2}));
    let answers = lines(&server, &batch["output_file_id"]).await;
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "b"]);
    let response = &answers["a"]["response"];
    assert_eq!((&response["status_code"], &answers["a"]["error"]), (&json!(200), &Value::Null));
    assert_eq!(response["body"]["choices"][0]["message"]["content"], "hello");
    let used = |name: &str| {
        answers.values().map(|line| line["response"]["body"]["usage"][name].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(batch["usage"]["output_tokens"], used("completion_tokens"));
    assert_eq!(batch["usage"]["total_tokens"], used("total_tokens"));
    let failures = lines(&server, &batch["error_file_id"]).await;
    assert_eq!(failures["c"]["response"]["status_code"], 400);
    assert_eq!(failures["c"]["response"]["body"]["error"]["param"], "messages");
    assert_eq!(failures["d"]["response"]["body"]["error"]["param"], "stream");
    let listed = get(&server, "/v1/batches").await;
    assert_eq!(listed["data"], json!([batch]));
    let made = get(&server, "/v1/files?purpose=batch_output").await;
    assert_eq!(made["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn files_that_are_no_calls_fail_with_their_lines() {
    let limits = BatchLimits { max_lines: 3, ..BatchLimits::default() };
    let config = Config { batches: limits, max_body_bytes: 4096, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["hello"])), config).await;
    let other = line("b", "x").replace("chat/completions", "completions");
    for (calls, number, code) in [
        (vec![line("a", "x"), "no JSON".to_owned()], json!(2), "invalid_json"),
        (vec![line("a", "x"), line("a", "y")], json!(2), "invalid_value"),
        (vec![line("a", "x"), other], json!(2), "invalid_value"),
        (vec![line("a", "x").replace("POST", "GET")], json!(1), "invalid_value"),
        (vec![line("a", "x").replace("custom_id", "id")], json!(1), "missing_parameter"),
        (vec![line("a", &"x".repeat(5000))], json!(1), "body_too_large"),
        (vec![line("a", "x"), line("b", "x"), line("c", "x"), line("d", "x")], Value::Null, "invalid_value"),
        (vec![String::new()], Value::Null, "invalid_value"),
    ] {
        let batch = ended(&server, &begin(&server, &calls).await, "failed").await;
        let fault = &batch["errors"]["data"][0];
        assert_eq!((&fault["line"], &fault["code"]), (&number, &json!(code)), "{fault}");
        assert_eq!(batch["output_file_id"], Value::Null);
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn batches_that_will_not_do_are_refused_by_name() {
    let limits = BatchLimits { max_batches: 1, ..BatchLimits::default() };
    let config = Config { batches: limits, ..Config::default() };
    let server = TestServer::configured(Script::holding(Vec::new()), config).await;
    let file = keep(&server, &line("a", "x")).await;
    for (field, value) in [
        ("input_file_id", json!("file-0")),
        ("endpoint", json!("/v1/moderations")),
        ("completion_window", json!("1h")),
        ("metadata", json!({"a": 1})),
        ("color", json!("red")),
    ] {
        let mut body = asks(&file);
        body[field] = value;
        let refused = server.post("/v1/batches", &body).await;
        assert_eq!(refused.status(), 400);
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], field);
    }
    let batch = server.answered("/v1/batches", &asks(&file)).await;
    assert_eq!(server.post("/v1/batches", &asks(&file)).await.status(), 429, "one too many");
    let delete = server.client.delete(format!("{}/v1/files/{file}", server.base)).send().await.unwrap();
    assert_eq!(delete.status(), 409, "it is being read");
    assert_eq!(server.post("/v1/batches/batch_0/cancel", &json!({})).await.status(), 404);
    server.answered(&format!("{}/cancel", path(&batch)), &json!({})).await;
    ended(&server, &batch, "cancelled").await;
    assert_eq!(server.post(&format!("{}/cancel", path(&batch)), &json!({})).await.status(), 409);
}

/// Ends the answer that is open.
fn finish(server: &TestServer) {
    let open = server.script.open.lock().remove(0);
    open.try_send(Event::Finished { choice: 0, reason: FinishReason::Stop }).unwrap();
}

async fn asked(server: &TestServer, calls: usize) {
    let enough = async {
        while server.script.asked.lock().len() < calls {
            tokio::task::yield_now().await;
        }
    };
    soon(enough).await;
}

fn one_at_a_time() -> BatchLimits {
    BatchLimits { max_running: 1, ..BatchLimits::default() }
}

#[tokio::test]
async fn a_batch_that_is_given_up_keeps_what_it_has() {
    let config = Config { batches: one_at_a_time(), ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    let begun = begin(&server, &[line("a", "1"), line("b", "2"), line("c", "3")]).await;
    asked(&server, 1).await;
    finish(&server);
    asked(&server, 2).await;
    let cancelling = server.answered(&format!("{}/cancel", path(&begun)), &json!({})).await;
    assert_eq!(cancelling["status"], "cancelling");
    let batch = ended(&server, &begun, "cancelled").await;
    server.script.dropped(2).await;
    assert_eq!(lines(&server, &batch["output_file_id"]).await.keys().collect::<Vec<_>>(), ["a"]);
    let errors = lines(&server, &batch["error_file_id"]).await;
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(errors["b"]["error"]["code"], "batch_cancelled");
    assert_eq!(server.script.asked.lock().len(), 2);
}

#[tokio::test]
async fn a_batch_goes_on_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let state_dir = Some(folder.path().to_owned());
    let config = Config { batches: one_at_a_time(), state_dir, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "first")), config.clone()).await;
    let begun = begin(&server, &[line("a", "1"), line("b", "2"), line("c", "3")]).await;
    asked(&server, 1).await;
    finish(&server);
    asked(&server, 2).await;
    server.shut_down().await;
    // As if the machine had stopped in the middle of a line.
    let output = std::fs::read_dir(folder.path().join("files")).unwrap().map(|entry| entry.unwrap().path());
    let is_output = |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap().contains("\"first\"");
    let output = output.into_iter().find(is_output).unwrap();
    let text = std::fs::read_to_string(&output).unwrap() + "{\"custom_id\": \"b\", \"resp";
    std::fs::write(&output, text).unwrap();

    let server = TestServer::configured(Script::saying(says(&["second"])), config.clone()).await;
    let batch = ended(&server, &begun, "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}));
    let answers = lines(&server, &batch["output_file_id"]).await;
    let said = |id: &str| answers[id]["response"]["body"]["choices"][0]["message"]["content"].clone();
    assert_eq!([said("a"), said("b"), said("c")], ["first", "second", "second"]);
    assert_eq!(server.script.asked.lock().len(), 2, "what was answered is not asked again");
    server.shut_down().await;
    let server = TestServer::configured(Script::saying(says(&["third"])), config).await;
    assert_eq!(get(&server, &path(&begun)).await, batch);
    assert_eq!(lines(&server, &batch["output_file_id"]).await.len(), 3);
}

#[tokio::test]
async fn lines_give_way_to_other_calls() {
    let limits = BatchLimits { max_running: 3, ..BatchLimits::default() };
    let config = Config { batches: limits, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    let stream = json!({"model": "mock", "prompt": "x", "stream": true});
    let others =
        [server.post("/v1/completions", &stream).await, server.post("/v1/completions", &stream).await];
    let calls: Vec<_> = (0..6).map(|i| line(&i.to_string(), "x")).collect();
    begin(&server, &calls).await;
    asked(&server, 3).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(server.script.asked.lock().len(), 3, "two others leave one of three places");
    drop(others);
    asked(&server, 5).await;
}

#[tokio::test]
async fn a_batch_has_only_so_much_time() {
    let limits = BatchLimits { batch_seconds: 1, ..one_at_a_time() };
    let config = Config { batches: limits, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    let batch = begin(&server, &[line("a", "1"), line("b", "2")]).await;
    let batch = ended(&server, &batch, "expired").await;
    let errors = lines(&server, &batch["error_file_id"]).await;
    assert_eq!(errors["b"]["error"]["code"], "batch_expired");
    assert!(batch["expired_at"].is_u64());
}

#[tokio::test]
async fn what_cannot_be_taken_now_is_asked_again() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let script = Script::new(move |_| {
        if first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Err(Failure::new(ErrorCode::Overloaded, "full"));
        }
        Ok(says(&["hello"]))
    });
    let server = TestServer::start(script).await;
    let batch = begin(&server, &[line("a", "1")]).await;
    let batch = ended(&server, &batch, "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 1, "completed": 1, "failed": 0}));
    assert_eq!(server.script.asked.lock().len(), 2);
}

#[tokio::test]
async fn a_line_that_waits_keeps_nobodys_place() {
    let script = Script::new(|request| {
        if request.tokens.contains(&u32::from(b'?')) {
            return Err(Failure::new(ErrorCode::Overloaded, "full"));
        }
        Ok(says(&["hello"]))
    });
    let config = Config { batches: one_at_a_time(), ..Config::default() };
    let server = TestServer::configured(script, config).await;
    let waits = begin(&server, &[line("a", "?")]).await;
    asked(&server, 1).await;
    let other = begin(&server, &[line("b", "!"), line("c", "!")]).await;
    ended(&server, &other, "completed").await;
    assert_eq!(get(&server, &path(&waits)).await["status"], "in_progress");
}

#[tokio::test]
async fn a_batch_that_is_asked_for_again_is_the_same_one() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    let file = keep(&server, &line("a", "1")).await;
    let ask = || {
        let request = server.client.post(format!("{}/v1/batches", server.base)).json(&asks(&file));
        request.header("idempotency-key", "k").send()
    };
    let first: Value = ask().await.unwrap().json().await.unwrap();
    let again: Value = ask().await.unwrap().json().await.unwrap();
    assert_eq!(first, again);
    assert_eq!(get(&server, "/v1/batches").await["data"].as_array().unwrap().len(), 1);
}
