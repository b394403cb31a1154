//! What happens on a connection besides calls and answers.

use std::sync::Arc;

use baton_protocol::{Event, FinishReason};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::script::{Script, TestServer, bytes, says, soon, token, until};
use crate::Config;

const CHAT: &str = "/v1/chat/completions";

fn body(stream: bool) -> Value {
    json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

/// A connection on which bytes can be sent as they are.
async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

fn head(path: &str, rest: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{rest}\r\n")
}

fn whole(body: &Value) -> String {
    let body = body.to_string();
    head(CHAT, &format!("content-length: {}\r\n", body.len())) + &body
}

/// Everything until the server closes.
async fn read_all(mut connection: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = soon(connection.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let config = Config { body_timeout_ms: 30, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    for rest in ["content-length: 100\r\n", "transfer-encoding: chunked\r\n"] {
        let mut connection = connect(&server).await;
        connection.write_all(head(CHAT, rest).as_bytes()).await.unwrap();
        connection.write_all(b"5\r\n{").await.unwrap();
        let answer = read_all(connection).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\"code\":\"body_timeout\""), "{answer}");
    }
}

#[tokio::test]
async fn a_body_larger_than_the_limit_is_refused_while_it_comes() {
    let config = Config { max_body_bytes: 1000, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    let mut connection = connect(&server).await;
    connection.write_all(head(CHAT, "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    connection.write_all(format!("800\r\n{}\r\n", " ".repeat(2048)).as_bytes()).await.unwrap();
    let answer = read_all(connection).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_stream_is_followed_by_where_its_time_went() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = body(true).to_string();
    for (asks, comes) in
        [("te: trailers\r\nconnection: close, te\r\n", true), ("connection: close\r\n", false)]
    {
        let mut connection = connect(&server).await;
        let rest = format!("{asks}content-length: {}\r\n", body.len());
        connection.write_all((head(CHAT, &rest) + &body).as_bytes()).await.unwrap();
        let answer = read_all(connection).await;
        assert!(answer.contains("data: [DONE]"), "{answer}");
        let trailer = "\r\nserver-timing: queue;dur=0, earlier;dur=0, prefill;dur=0, transfer;dur=0, wait;dur=0, decode;dur=1.5";
        assert_eq!(answer.contains(trailer), comes, "{answer}");
    }
}

#[tokio::test]
async fn broken_framing_reaches_nobody() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for rest in [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: x\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "no colon\r\n",
    ] {
        let mut connection = connect(&server).await;
        connection.write_all((head(CHAT, rest) + "{}").as_bytes()).await.unwrap();
        let answer = read_all(connection).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{rest}: {answer}");
    }
    let mut connection = connect(&server).await;
    connection.write_all(head(CHAT, "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    connection.write_all(b"FFFFFFFFFFFFFFFFF\r\n{}").await.unwrap();
    let answer = read_all(connection).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn heads_have_limits() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let many = "a: b\r\n".repeat(100);
    let long = format!("a: {}\r\n", "b".repeat(20 << 10));
    for rest in [many, long] {
        let mut connection = connect(&server).await;
        let _ = connection.write_all(head(CHAT, &rest).as_bytes()).await;
        let answer = read_all(connection).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let config = Config { header_timeout_ms: 30, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    let mut connection = connect(&server).await;
    connection.write_all(b"POST /v1/chat/comp").await.unwrap();
    let answer = read_all(connection).await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_connection_serves_one_call_after_another() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let mut connection = connect(&server).await;
    for call in 1..=3 {
        connection.write_all(whole(&body(true)).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The last chunk of a chunked body.
        while !answer.ends_with(b"0\r\n\r\n") {
            assert!(soon(connection.read_buf(&mut answer)).await.unwrap() > 0);
        }
        assert_eq!(server.script.asked.lock().len(), call);
    }
}

#[tokio::test]
async fn places_are_given_back() {
    let config = Config { max_connections: 1, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    for _ in 0..3 {
        let mut connection = connect(&server).await;
        connection.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(read_all(connection).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_drops_the_answer() {
    for stream in [false, true] {
        let server = TestServer::start(Script::holding(vec![Event::Accepted { cached_tokens: 0 }])).await;
        let mut connection = connect(&server).await;
        connection.write_all(whole(&body(stream)).as_bytes()).await.unwrap();
        until(|| !server.script.open.lock().is_empty()).await;
        drop(connection);
        server.script.dropped(1).await;
        let text = soon(metrics_with(&server, "status=\"499\"} 1")).await;
        assert!(text.contains("http_requests_total{route=\"chat\",status=\"499\"} 1"), "{text}");
    }
}

/// Metrics, once a line ends so: the count comes right after the drop.
async fn metrics_with(server: &TestServer, end: &str) -> String {
    loop {
        let text = server.get("/metrics").await.text().await.unwrap();
        if text.lines().any(|line| line.ends_with(end)) {
            return text;
        }
    }
}

#[tokio::test]
async fn time_limits_hold_without_the_cluster() {
    let config = Config { request_timeout_ms: 40, ..Config::default() };
    for script in [Script::stuck(), Script::holding(vec![Event::Accepted { cached_tokens: 0 }])] {
        let server = TestServer::configured(script, config.clone()).await;
        assert_eq!(server.chat(&body(false)).await.status(), 504);
    }
}

#[tokio::test]
async fn shutdown_lets_an_answer_end() {
    let mut server = TestServer::start(Script::holding(bytes(0, "a"))).await;
    let response = server.chat(&body(true)).await;
    server.begin_shutdown();
    soon(async { while TcpStream::connect(server.address()).await.is_ok() {} }).await;
    let open = server.script.open.lock().pop().unwrap();
    open.try_send(token(0, 1, u32::from(b'b'))).unwrap();
    open.try_send(Event::Finished { choice: 0, reason: FinishReason::Stop }).unwrap();
    drop(open);
    let text = response.text().await.unwrap();
    assert!(text.contains("\"content\":\"b\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    server.shut_down().await;
}

#[tokio::test]
async fn shutdown_cuts_off_what_outlives_the_grace() {
    let config = Config { grace_ms: 20, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "a")), config).await;
    let response = server.chat(&body(true)).await;
    let script = Arc::clone(&server.script);
    server.shut_down().await;
    script.dropped(1).await;
    assert!(response.text().await.is_err());
}
