//! SGLang's routes.

use baton_protocol::{Event, FinishReason, PromptPart, PromptToken, Token, TopLogprob};
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

/// Tokens of a prompt from `first` on, the k-th with log-probability `-k` and the alternative "z".
fn told(first: u32, tokens: u32) -> Event {
    let token = |place: u32| PromptToken {
        logprob: -(place as f32),
        rank: place + 1,
        top: vec![TopLogprob { id: 122, logprob: -0.25 }],
    };
    Event::Prompt(PromptPart { first, tokens: (first..first + tokens).map(token).collect() })
}

#[tokio::test]
async fn a_prompt_is_told_of_from_where_that_is_asked() {
    let script = Script::new(|request| {
        let Some(asked) = request.prompt_logprobs else { return Ok(said()) };
        // In parts, as they are computed.
        let parts = (asked.from..request.tokens.len() as u32).map(|place| told(place, 1));
        Ok(parts.chain(said()).collect())
    });
    let server = TestServer::start(script).await;
    let input = async |more: Value| {
        let mut body = json!({"text": "hijk", "return_logprob": true, "top_logprobs_num": 1,
            "return_text_in_logprobs": true, "sampling_params": {"max_new_tokens": 0}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.answered("/generate", &body).await;
        assert_eq!((&answer["text"], &answer["output_ids"]), (&json!(""), &json!([])));
        let meta = answer["meta_info"].clone();
        assert_eq!(meta["finish_reason"], json!({"type": "length", "length": 0}));
        assert_eq!((&meta["completion_tokens"], &meta["output_token_logprobs"]), (&json!(0), &json!([])));
        (meta["input_token_logprobs"].clone(), meta["input_top_logprobs"].clone())
    };
    let (tokens, tops) = input(json!({"logprob_start_len": 0})).await;
    assert_eq!(tokens, json!([[null, 104, "h"], [-1.0, 105, "i"], [-2.0, 106, "j"], [-3.0, 107, "k"]]));
    assert_eq!((&tops[0], &tops[1]), (&Value::Null, &json!([[-0.25, 122, "z"]])));
    assert_eq!(
        input(json!({"logprob_start_len": 1})).await.0,
        json!([[-1.0, 105, "i"], [-2.0, 106, "j"], [-3.0, 107, "k"]])
    );
    assert_eq!(input(json!({"logprob_start_len": 3})).await.0, json!([[-3.0, 107, "k"]]));
    assert_eq!(input(json!({})).await.0, json!([[null, 107, "k"]]), "of the answer alone");
    let from = |asked: &baton_protocol::Request| asked.prompt_logprobs.map(|asked| asked.from);
    let asked: Vec<_> = server.script.asked.lock().iter().map(from).collect();
    assert_eq!(asked, [Some(1), Some(1), Some(3), None]);
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
        (json!({"text": "a", "return_logprob": true, "logprob_start_len": 1}), "logprob_start_len"),
        (json!({"text": "a", "return_logprob": true, "logprob_start_len": -2}), "logprob_start_len"),
        (
            json!({"text": "a", "return_logprob": true, "logprob_start_len": 0, "stream": true}),
            "logprob_start_len",
        ),
        (
            json!({"text": "a", "sampling_params": {"max_new_tokens": 0, "min_new_tokens": 1}}),
            "sampling_params.min_new_tokens",
        ),
        (json!({"text": "a", "lora_path": "x"}), "lora_path"),
        (json!({"text": "a", "sampling_params": {"regex": "("}}), "sampling_params.regex"),
        (json!({"text": "a", "sampling_params": {"max_new_tokens": -1}}), "sampling_params.max_new_tokens"),
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

#[tokio::test]
async fn prefix_caches_are_forgotten_when_asked() {
    let server = TestServer::start(Script::saying(says(&["x"]))).await;
    for (path, text) in [("/flush_cache", "Cache flushed.\n"), ("/reset_prefix_cache", "")] {
        let response = server.client.post(format!("{}{path}", server.base)).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, text));
        assert_eq!(server.get(path).await.status(), 405, "what changes something is no GET");
    }
    assert_eq!(server.script.forgot.load(std::sync::atomic::Ordering::SeqCst), 2);
}
