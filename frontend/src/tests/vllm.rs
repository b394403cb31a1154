//! vLLM's routes.

use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, bytes, says};

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = json!({"model": "mock", "prompt": "é<|im_end|>", "return_token_strs": true});
    let found = server.answered("/tokenize", &body).await;
    assert_eq!(
        found,
        json!({"count": 3, "max_model_len": CONTEXT, "tokens": [0xc3, 0xa9, 257],
            "token_strs": ["\u{fffd}", "\u{fffd}", "<|im_end|>"]})
    );
    let back = server.answered("/detokenize", &json!({"tokens": found["tokens"]})).await;
    assert_eq!(back, json!({"prompt": "é<|im_end|>"}));
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = server.answered("/tokenize", &json!({"messages": messages})).await;
    server.answered("/v1/chat/completions", &json!({"model": "mock", "messages": messages})).await;
    assert_eq!(chat["tokens"], json!(server.script.asked.lock()[0].tokens));
    assert_eq!(chat["token_strs"], Value::Null);
}

#[tokio::test]
async fn what_cannot_be_tokenized_is_refused_by_name() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 5}), "prompt"),
        ("/tokenize", json!({"prompt": "x".repeat(100_000)}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "special": 1}), "special"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/detokenize", json!({"tokens": [1_000_000]}), "tokens"),
    ] {
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["param"], param);
    }
    assert_eq!(server.post("/tokenize", &json!({"model": "x", "prompt": "y"})).await.status(), 404);
}

#[tokio::test]
async fn version_and_load_are_told() {
    let server = TestServer::start(Script::holding(bytes(0, "a"))).await;
    let get = async |path| server.get(path).await.json::<Value>().await.unwrap();
    assert_eq!(get("/version").await["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(get("/load").await["server_load"], 0);
    let body = json!({"model": "mock", "prompt": "x", "stream": true});
    let open = server.post("/v1/completions", &body).await;
    assert_eq!(get("/load").await["server_load"], 1);
    drop(open);
    server.script.dropped(1).await;
    while get("/load").await["server_load"] != 0 {}
}
