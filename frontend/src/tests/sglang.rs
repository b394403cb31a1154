//! SGLang's routes.

use baton_protocol::{Event, FinishReason, Token, TopLogprob};
use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, says};

fn said() -> Vec<Event> {
    let token = |position, id| {
        let top = vec![TopLogprob { id: 99, logprob: -1.0 }];
        Event::Token(Token { choice: 0, position, id, logprob: Some(-0.5), top })
    };
    let finished = Event::Finished { choice: 0, reason: FinishReason::Length };
    vec![Event::Accepted { cached_tokens: 1 }, token(0, 97), token(1, 98), finished]
}

#[tokio::test]
async fn an_answer_has_text_tokens_and_meta_info() {
    let server = TestServer::start(Script::saying(said())).await;
    let body =
        json!({"text": "hi", "rid": "mine", "sampling_params": {"max_new_tokens": 2, "temperature": 0}});
    assert_eq!(
        server.answered("/generate", &body).await,
        json!({"text": "ab", "output_ids": [97, 98], "meta_info": {"id": "mine",
            "finish_reason": {"type": "length", "length": 2}, "prompt_tokens": 2, "completion_tokens": 2, "cached_tokens": 1}})
    );
    let body = json!({"input_ids": [104, 105], "return_logprob": true, "top_logprobs_num": 1,
        "return_text_in_logprobs": true, "sampling_params": {"stop": "b"}});
    let answer = server.answered("/generate", &body).await;
    assert_eq!(answer["text"], "a");
    let meta = &answer["meta_info"];
    assert_eq!(meta["finish_reason"], json!({"type": "stop", "matched": "b"}));
    assert_eq!(meta["output_token_logprobs"], json!([[-0.5, 97, "a"], [-0.5, 98, "b"]]));
    assert_eq!(meta["output_top_logprobs"], json!([[[-1.0, 99, "c"]], [[-1.0, 99, "c"]]]));
    let asked = server.script.asked.lock();
    assert_eq!(asked[0].tokens, asked[1].tokens);
    assert_eq!(asked[1].stop.max_tokens, CONTEXT - 2, "the usual 128, as far as there is room");
}

#[tokio::test]
async fn several_prompts_are_answered_in_an_array() {
    let server = TestServer::start(Script::saying(says(&["x", "y"]))).await;
    let body = json!({"text": ["a", "bc"], "sampling_params": {"n": 2}});
    let answers = server.answered("/generate", &body).await;
    let told = |i: usize| {
        (answers[i]["text"].as_str().unwrap(), answers[i]["meta_info"]["prompt_tokens"].as_u64().unwrap())
    };
    assert_eq!([0, 1, 2, 3].map(told), [("x", 1), ("y", 1), ("x", 2), ("y", 2)]);
}

#[tokio::test]
async fn a_stream_tells_everything_so_far() {
    let server = TestServer::start(Script::saying(said())).await;
    let events = server.events("/generate", &json!({"text": "hi", "stream": true})).await;
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let texts: Vec<_> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "ab", "ab"]);
    assert_eq!(events[1]["meta_info"]["finish_reason"], Value::Null);
    assert_eq!(events[2]["meta_info"]["finish_reason"]["type"], "length");
    assert_eq!(events[2]["meta_info"]["completion_tokens"], 2);
}

#[tokio::test]
async fn refusals_name_the_field() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (body, param) in [
        (json!({}), "text"),
        (json!({"text": 5}), "text"),
        (json!({"text": ["a", 5]}), "text"),
        (json!({"text": "a", "input_ids": [1]}), "input_ids"),
        (json!({"input_ids": [[1], [1_000_000]]}), "input_ids[1]"),
        (json!({"text": "a", "logprob_start_len": 0}), "logprob_start_len"),
        (json!({"text": "a", "lora_path": "x"}), "lora_path"),
        (json!({"text": "a", "sampling_params": {"regex": "("}}), "sampling_params.regex"),
        (json!({"text": "a", "sampling_params": {"max_new_tokens": 0}}), "sampling_params.max_new_tokens"),
        (
            json!({"text": "a", "sampling_params": {"min_new_tokens": CONTEXT}}),
            "sampling_params.min_new_tokens",
        ),
        (
            json!({"text": "a", "sampling_params": {"stop_token_ids": [1_000_000]}}),
            "sampling_params.stop_token_ids",
        ),
        (json!({"text": "a", "sampling_params": [{}]}), "sampling_params"),
    ] {
        let response = server.post("/generate", &body).await;
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["param"], param, "{body}");
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn the_model_and_its_health_are_told() {
    let server = TestServer::start(Script::saying(says(&["x"]))).await;
    let info: Value = server.get("/get_model_info").await.json().await.unwrap();
    assert_eq!((&info["model_path"], &info["is_generation"]), (&json!("mock"), &json!(true)));
    assert_eq!(server.get("/health_generate").await.status(), 200);
    assert_eq!(server.script.asked.lock()[0].stop.max_tokens, 1);
    let failing = TestServer::start(Script::new(|_| {
        Err(baton_protocol::Failure::new(baton_protocol::ErrorCode::Unavailable, "no node"))
    }));
    assert_eq!(failing.await.get("/health_generate").await.status(), 503);
}
