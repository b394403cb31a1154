//! Vectors in place of answers.

use baton_protocol::{Event, FinishReason, Pooling, Request};
use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, says};
use crate::{Config, EmbeddingConfig};

const PATH: &str = "/v1/embeddings";

/// A vector that says how long the prompt was.
pub fn embeds(request: &Request) -> Vec<Event> {
    let finished = Event::Finished { choice: 0, reason: FinishReason::Stop };
    let vector = Event::Embedding(vec![request.tokens.len() as f32, -0.5]);
    vec![Event::Accepted { cached_tokens: 0 }, vector, finished]
}

async fn server(config: Config) -> TestServer {
    TestServer::configured(Script::new(|request| Ok(embeds(request))), config).await
}

#[tokio::test]
async fn texts_and_tokens_become_vectors_in_their_order() {
    let server = server(Config::default()).await;
    let answer = server.answered(PATH, &json!({"model": "mock", "input": "abc", "user": "me"})).await;
    assert_eq!(
        answer,
        json!({"object": "list", "model": "mock", "usage": {"prompt_tokens": 3, "total_tokens": 3},
            "data": [{"object": "embedding", "index": 0, "embedding": [3.0, -0.5]}]})
    );
    for (input, lengths) in [
        (json!(["a", "bcd"]), vec![1.0, 3.0]),
        (json!([5, 6, 7, 8]), vec![4.0]),
        (json!([[5, 6], [7]]), vec![2.0, 1.0]),
        (json!(vec!["x"; 40]), vec![1.0; 40]),
    ] {
        let answer = server.answered(PATH, &json!({"model": "mock", "input": input})).await;
        let found = answer["data"].as_array().unwrap().iter().zip(0..).map(|(vector, index)| {
            assert_eq!(vector["index"], index);
            vector["embedding"][0].as_f64().unwrap()
        });
        assert_eq!(found.collect::<Vec<_>>(), lengths, "{input}");
    }
    let asked = &server.script.asked.lock()[0];
    assert_eq!((asked.embedding, asked.choices, asked.stop.max_tokens), (Some(Pooling::Mean), 1, 1));
}

#[tokio::test]
async fn base64_is_of_the_bytes() {
    let server = server(Config::default()).await;
    let body = json!({"model": "mock", "input": "a", "encoding_format": "base64"});
    // 1.0 and -0.5 are 0000803f and 000000bf.
    assert_eq!(server.answered(PATH, &body).await["data"][0]["embedding"], "AACAPwAAAL8=");
}

#[tokio::test]
async fn pooling_and_sizes_are_settings() {
    let embeddings = EmbeddingConfig { pooling: Pooling::Last, max_inputs: 2 };
    let server = server(Config { embeddings, ..Config::default() }).await;
    let whole = "x".repeat(CONTEXT as usize);
    server.answered(PATH, &json!({"model": "mock", "input": whole})).await;
    assert_eq!(server.script.asked.lock()[0].embedding, Some(Pooling::Last));
    for (change, param) in [
        (json!({"input": ["a", "b", "c"]}), "input"),
        (json!({"input": "x".repeat(CONTEXT as usize + 1)}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": [[1], [1_000_000]]}), "input[1]"),
        (json!({"input": 5}), "input"),
        (json!({"encoding_format": "int8"}), "encoding_format"),
        (json!({"dimensions": 2}), "dimensions"),
        (json!({"model": null}), "model"),
    ] {
        let mut body = json!({"model": "mock", "input": "a"});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let response = server.post(PATH, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["param"], param, "{body}");
    }
}

#[tokio::test]
async fn a_failure_has_its_status() {
    let failing =
        Script::new(|_| Err(baton_protocol::Failure::new(baton_protocol::ErrorCode::Unavailable, "no node")));
    let body = json!({"model": "mock", "input": ["a", "b"]});
    assert_eq!(TestServer::start(failing).await.post(PATH, &body).await.status(), 503);
    let wordy = TestServer::start(Script::saying(says(&["words"]))).await;
    assert_eq!(wordy.post(PATH, &body).await.status(), 500);
}
