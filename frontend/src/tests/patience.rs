//! What headers say of a reader's patience, and where it goes.

use std::time::Duration;

use baton_coordinator::Wishes;
use serde_json::{Value, json};

use super::script::{Script, TestServer, says};

async fn post(server: &TestServer, path: &str, headers: &[(&str, &str)], body: Value) -> reqwest::Response {
    let request = server.client.post(format!("{}{path}", server.base)).json(&body);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

#[tokio::test]
async fn wishes_reach_the_coordinator_from_every_dialect() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let headers = [
        ("x-baton-ttft-ms", "250"),
        ("x-llm-d-slo-tpot-ms", "40"),
        ("x-baton-priority", "7"),
        ("x-baton-deadline-ms", "1500"),
    ];
    let message = json!([{"role": "user", "content": "hi"}]);
    let calls = [
        ("/v1/completions", json!({"model": "mock", "prompt": "hi"})),
        ("/v1/chat/completions", json!({"model": "mock", "messages": message})),
        ("/v1/messages", json!({"model": "mock", "messages": message, "max_tokens": 5})),
        ("/generate", json!({"inputs": "hi"})),
        ("/generate", json!({"text": "hi"})),
    ];
    for (path, body) in calls.clone() {
        let response = post(&server, path, &headers, body).await;
        assert_eq!(response.status(), 200, "{path}: {:?}", response.text().await);
    }
    let ms = |ms| Some(Duration::from_millis(ms));
    let wishes = Wishes { ttft: ms(250), itl: ms(40), priority: 7 };
    assert_eq!(*server.script.wishes.lock(), vec![wishes; calls.len()]);
    let deadlines: Vec<_> = server.script.asked.lock().iter().map(|request| request.deadline).collect();
    assert_eq!(deadlines, vec![Duration::from_millis(1500); calls.len()]);
}

#[tokio::test]
async fn tiers_of_service_are_places_in_line_where_no_header_says_one() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let message = json!([{"role": "user", "content": "hi"}]);
    let tiers = [("flex", -10), ("auto", 0), ("default", 0), ("priority", 10)];
    for (tier, expected) in tiers {
        for (path, body) in [
            ("/v1/completions", json!({"model": "mock", "prompt": "hi", "service_tier": tier})),
            ("/v1/chat/completions", json!({"model": "mock", "messages": message, "service_tier": tier})),
            ("/v1/responses", json!({"model": "mock", "input": "hi", "service_tier": tier})),
        ] {
            let answer: Value = post(&server, path, &[], body.clone()).await.json().await.unwrap();
            let used = if tier == "auto" { "default" } else { tier };
            assert_eq!(answer["service_tier"], used, "{path}: {answer}");
            assert_eq!(server.script.wishes.lock().pop().unwrap().priority, expected, "{path} {tier}");
            assert_eq!(post(&server, path, &[("x-baton-priority", "3")], body).await.status(), 200, "{path}");
            assert_eq!(server.script.wishes.lock().pop().unwrap().priority, 3, "{path} {tier}");
        }
    }
}

#[tokio::test]
async fn a_malformed_header_is_named_and_nothing_is_asked() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = json!({"model": "mock", "prompt": "hi"});
    for name in ["x-baton-ttft-ms", "x-baton-itl-ms", "x-baton-priority", "x-baton-deadline-ms"] {
        let response = post(&server, "/v1/completions", &[(name, "soon")], body.clone()).await;
        assert_eq!(response.status(), 400, "{name}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(
            (&error["error"]["param"], &error["error"]["code"]),
            (&json!(name), &json!("invalid_value"))
        );
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn a_deadline_is_no_later_than_the_servers_own() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = json!({"model": "mock", "prompt": "hi"});
    post(&server, "/v1/completions", &[], body.clone()).await;
    post(&server, "/v1/completions", &[("x-baton-deadline-ms", "86400000")], body).await;
    let deadlines: Vec<_> = server.script.asked.lock().iter().map(|request| request.deadline).collect();
    assert_eq!(deadlines[0], deadlines[1]);
}
