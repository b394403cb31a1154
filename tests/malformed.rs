//! Malformed bodies on a running split cluster: each gets a 4xx in OpenAI's
//! form, nothing is lost or left behind, and the next good request works.

use serde_json::{Value, json};

use crate::sandbox::{Cluster, Outcome, Plan, complete};

const SETTINGS: &str = r#"
cluster = "malformed"
model = "mock"

[engine]
backend = "mock"
pages = 64

[frontend]
listen = "127.0.0.1:0"
"#;

fn chat(change: &Value) -> Value {
    let mut body = json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Bodies and the statuses they may get.
fn bodies() -> Vec<(String, u16)> {
    let mut bodies: Vec<(String, u16)> =
        ["", "{", "null", "[]", "1", "\"x\"", "{\"model\":\"mock\"", "{\"a\":1,\"a\":2}", "\u{feff}{}"]
            .iter()
            .map(|text| ((*text).to_owned(), 400))
            .collect();
    bodies.push(("[".repeat(100_000), 400));
    bodies.push((chat(&json!({"model": "nobody"})).to_string(), 404));
    let changes = [
        json!({"messages": []}),
        json!({"messages": null}),
        json!({"messages": "hi"}),
        json!({"messages": [{"role": "king", "content": "hi"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}),
        json!({"messages": [{"role": "user", "content": "a".repeat(200_000)}]}),
        json!({"model": 5}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": -1}),
        json!({"max_tokens": 1.5}),
        json!({"max_tokens": "10"}),
        json!({"max_tokens": 9_000_000_000_u64}),
        json!({"n": 0}),
        json!({"n": 1_000_000}),
        json!({"temperature": -0.1}),
        json!({"temperature": 2.1}),
        json!({"temperature": "hot"}),
        json!({"top_p": 0}),
        json!({"top_p": 1.1}),
        json!({"top_k": -2}),
        json!({"min_p": 2}),
        json!({"presence_penalty": 3}),
        json!({"frequency_penalty": -3}),
        json!({"repetition_penalty": 0}),
        json!({"logit_bias": {"abc": 1}}),
        json!({"logit_bias": {"5": 1000}}),
        json!({"logit_bias": {"99999999": 1}}),
        json!({"top_logprobs": 3}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": ""}),
        json!({"seed": "x"}),
        json!({"stream": "yes"}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"tools": [{"type": "function", "function": {"name": "no such name"}}]}),
        json!({"tool_choice": "required"}),
        json!({"response_format": {"type": "xml"}}),
        json!({"guided_json": {"type": "strnig"}}),
        json!({"guided_regex": "("}),
        json!({"guided_grammar": "start: nothing"}),
        json!({"chat_template": "{{ 1 }}"}),
        json!({"kv_transfer_params": {}}),
        json!({"bootstrap_room": 1}),
        json!({"nonsense": 1}),
    ];
    bodies.extend(changes.iter().map(|change| (chat(change).to_string(), 400)));
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_are_refused_and_leave_nothing_behind() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let before = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    let bodies = bodies();
    assert!(bodies.len() >= 40);
    let count = bodies.len();
    for (body, status) in bodies {
        let shown: String = body.chars().take(120).collect();
        let url = format!("{}/v1/chat/completions", cluster.url);
        let request = cluster.http.post(url).header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{shown}");
        let error: Value = answer.json().await.unwrap_or_else(|_| panic!("not JSON: {shown}"));
        let error = &error["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{shown}: {error}");
        assert!(error["type"].is_string(), "{shown}: {error}");
        for field in ["param", "code"] {
            assert!(error.get(field).is_some(), "{shown}: no {field} in {error}");
        }
    }
    println!("{count} malformed bodies refused");
    let after = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    assert_eq!(before, after);

    // Control tokens spelled in text stay text, and the server still answers.
    let spelled = json!({"model": "mock", "prompt": [60, 124, 105], "max_tokens": 4, "stream": true, "ignore_eos": true});
    assert_eq!(complete(&cluster.http, &cluster.url, &spelled).await.outcome, Outcome::Done);
}
