//! A real model that is not tuned for chat answers questions through the API, and stops there.

use serde_json::{Value, json};

use crate::sandbox::Cluster;

const SETTINGS: &str = "cluster = \"sense\"\nmodel = \"gemma3-270m\"\n[frontend]\nlisten = \"127.0.0.1:0\"\n";

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

/// The text of a greedy answer, and why it ended.
async fn ask(cluster: &Cluster, messages: &Value, ignore_eos: bool) -> (String, String) {
    let body = json!({
        "model": "gemma3-270m", "messages": messages, "max_tokens": 24, "temperature": 0,
        "ignore_eos": ignore_eos,
    });
    let url = format!("{}/v1/chat/completions", cluster.url);
    let answer = cluster.http.post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{messages}");
    let answer: Value = answer.json().await.unwrap();
    let choice = &answer["choices"][0];
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    (word(&choice["message"]["content"]), word(&choice["finish_reason"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_chat_template_answers_and_stops() {
    let cluster = Cluster::start_embedded(SETTINGS).await;
    let talk = json!([
        user("What is the capital of Spain?"),
        {"role": "assistant", "content": "Madrid."},
        user("And of Italy?"),
    ]);
    for (messages, expected) in [
        (json!([user("What is the capital of France?")]), "Paris"),
        (json!([user("What is the capital of Japan?")]), "Tokyo"),
        (json!([user("What is the largest planet in the solar system?")]), "Jupiter"),
        (json!([user("What language is spoken in Brazil?")]), "Portuguese"),
        (talk, "Rome"),
    ] {
        let (text, reason) = ask(&cluster, &messages, false).await;
        assert!(text.contains(expected), "{messages}: {text:?}");
        assert!(reason == "stop" && !text.contains("Question"), "{messages}: {reason}, {text:?}");
    }
    // Who wants all that the model says can have it.
    let (text, reason) = ask(&cluster, &json!([user("What is the capital of France?")]), true).await;
    assert!(reason == "length" && text.contains("Question:"), "{reason}, {text:?}");
}
