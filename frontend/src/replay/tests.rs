//! Calls with an `Idempotency-Key`, made again in every way.

use std::path::PathBuf;

use baton_protocol::{ErrorCode, Event, Failure, FinishReason};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::{
    Config,
    tests::script::{Script, TestServer, bytes, says, soon, token, until},
};

const CHAT: &str = "/v1/chat/completions";

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let mut name = [0; 8];
        getrandom::fill(&mut name).unwrap();
        Self(std::env::temp_dir().join(format!("baton-answers-{:016x}", u64::from_le_bytes(name))))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn body(stream: bool) -> Value {
    json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

fn keyed(server: &TestServer, key: &str, body: &Value) -> RequestBuilder {
    server.client.post(format!("{}{CHAT}", server.base)).header("idempotency-key", key).json(body)
}

async fn ask(server: &TestServer, key: &str, body: &Value) -> Response {
    soon(keyed(server, key, body).send()).await.unwrap()
}

fn asked(server: &TestServer) -> usize {
    server.script.asked.lock().len()
}

async fn text(response: Response) -> String {
    soon(response.text()).await.unwrap()
}

#[tokio::test]
async fn the_same_call_again_gets_the_same_answer_without_computing() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    for stream in [false, true] {
        let key = format!("key-{stream}");
        let first = ask(&server, &key, &body(stream)).await;
        assert_eq!(first.headers().get("idempotent-replayed"), None);
        let media = first.headers()["content-type"].clone();
        let first = text(first).await;
        let again = ask(&server, &key, &body(stream)).await;
        assert_eq!((again.status().as_u16(), &again.headers()["content-type"]), (200, &media));
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!(text(again).await, first);
    }
    assert_eq!(asked(&server), 2);
    // Another key, and none, are other calls.
    ask(&server, "other", &body(false)).await;
    server.chat(&body(false)).await;
    assert_eq!(asked(&server), 4);
}

#[tokio::test]
async fn a_call_that_runs_is_joined_and_a_broken_stream_goes_on_at_the_next_event() {
    let server = TestServer::start(Script::holding(bytes(0, "a"))).await;
    let mut first = ask(&server, "k", &body(true)).await;
    let begun = soon(first.chunk()).await.unwrap().unwrap();
    let begun = String::from_utf8(begun.to_vec()).unwrap();
    assert!(begun.starts_with("id: 1\ndata: "), "{begun}");
    drop(first);
    let known = begun.matches("id: ").count();
    let goes_on = keyed(&server, "k", &body(true)).header("last-event-id", known.to_string()).send();
    let goes_on = soon(goes_on).await.unwrap();
    let joined = ask(&server, "k", &body(true)).await;
    let open = server.script.open.lock().pop().unwrap();
    open.try_send(token(0, 1, u32::from(b'b'))).unwrap();
    open.try_send(Event::Finished { choice: 0, reason: FinishReason::Stop }).unwrap();
    drop(open);
    let (goes_on, joined) = (text(goes_on).await, text(joined).await);
    assert_eq!(asked(&server), 1);
    assert_eq!(begun + &goes_on, joined, "nothing twice and nothing missing");
    assert!(goes_on.starts_with(&format!("id: {}\n", known + 1)), "{goes_on}");
    assert!(goes_on.contains("\"content\":\"b\"") && goes_on.ends_with("data: [DONE]\n\n"), "{goes_on}");
}

#[tokio::test]
async fn a_key_has_one_body() {
    let server = TestServer::start(Script::holding(bytes(0, "a"))).await;
    let _running = ask(&server, "k", &body(true)).await;
    let refused = ask(&server, "k", &body(false)).await;
    assert_eq!(refused.status(), 409);
    assert_eq!(refused.headers()["x-should-retry"], "false");
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "idempotency_key_in_use");
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    text(ask(&server, "k", &body(false)).await).await;
    let refused = ask(&server, "k", &body(true)).await;
    assert_eq!(refused.status(), 422);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "idempotency_key_reused");
    assert_eq!(asked(&server), 1);
}

#[tokio::test]
async fn who_leaves_is_waited_for_and_then_not() {
    let config = Config { detach_grace_ms: 50, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    drop(ask(&server, "k", &body(true)).await);
    server.script.dropped(1).await;
    // It is forgotten: the next one is the first again.
    until(|| server.script.open.lock().iter().all(tokio::sync::mpsc::Sender::is_closed)).await;
    soon(async {
        while asked(&server) < 2 {
            drop(ask(&server, "k", &body(true)).await);
        }
    })
    .await;

    let server = TestServer::start(Script::holding(bytes(0, "a"))).await;
    drop(ask(&server, "k", &body(true)).await);
    let back = ask(&server, "k", &body(true)).await;
    assert_eq!(asked(&server), 1);
    assert!(!server.script.open.lock()[0].is_closed());
    drop(back);
}

#[tokio::test]
async fn what_failed_is_not_kept() {
    let fails = || Script::new(|_| Err(Failure::new(ErrorCode::Overloaded, "full")));
    let breaks = || {
        let mut events = bytes(0, "a");
        events.push(Event::Failed(Failure::new(ErrorCode::PeerLost, "gone")));
        Script::saying(events)
    };
    for script in [fails(), breaks()] {
        let server = TestServer::start(script).await;
        for calls in 1..=2 {
            text(ask(&server, "k", &body(true)).await).await;
            assert_eq!(asked(&server), calls);
        }
    }
}

#[tokio::test]
async fn answers_survive_a_restart_and_not_their_age() {
    let folder = Folder::new();
    let config = Config { state_dir: Some(folder.0.clone()), ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["hello"])), config.clone()).await;
    let first = text(ask(&server, "k", &body(true)).await).await;
    server.shut_down().await;
    let server = TestServer::configured(Script::saying(says(&["other"])), config.clone()).await;
    assert_eq!(text(ask(&server, "k", &body(true)).await).await, first);
    assert_eq!(asked(&server), 0);
    server.shut_down().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let config = Config { kept_seconds: 1, ..config };
    let server = TestServer::configured(Script::saying(says(&["other"])), config).await;
    assert_ne!(text(ask(&server, "k", &body(true)).await).await, first);
    assert_eq!(asked(&server), 1);
}

#[tokio::test]
async fn only_so_many_are_kept_and_the_oldest_go() {
    let config = Config { max_kept_answers: 2, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["hello"])), config).await;
    for key in ["a", "b", "c"] {
        text(ask(&server, key, &body(false)).await).await;
    }
    text(ask(&server, "c", &body(false)).await).await;
    assert_eq!(asked(&server), 3);
    text(ask(&server, "a", &body(false)).await).await;
    assert_eq!(asked(&server), 4);
    let config = Config { max_kept_answers: 1, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    let _running = ask(&server, "a", &body(true)).await;
    assert_eq!(ask(&server, "b", &body(true)).await.status(), 429);
}

#[tokio::test]
async fn keys_and_event_numbers_that_cannot_be_are_refused() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    for key in ["", &"x".repeat(256)] {
        assert_eq!(ask(&server, key, &body(false)).await.status(), 400, "{key:?}");
    }
    for (key, number) in [(Some("k"), "x"), (None, "3")] {
        let request = server.client.post(format!("{}{CHAT}", server.base)).json(&body(true));
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let refused = request.header("last-event-id", number).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{key:?} {number}");
    }
    assert_eq!(asked(&server), 0);
}
