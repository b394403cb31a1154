//! The routes of Text Generation Inference.

use baton_protocol::{ErrorCode, Event, Failure, FinishReason, Token, TopLogprob};
use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, says};

/// `text` byte by byte, with log-probabilities, ended for this reason.
fn likely(choice: u32, text: &str, logprob: f32, reason: FinishReason) -> Vec<Event> {
    let token = |(position, byte): (u32, u8)| {
        let top = vec![TopLogprob { id: 97, logprob }];
        Event::Token(Token { choice, position, id: u32::from(byte), logprob: Some(logprob), top })
    };
    let tokens = (0..).zip(text.bytes()).map(token);
    tokens.chain([Event::Finished { choice, reason }]).collect()
}

fn json_of(payloads: &[String]) -> Vec<Value> {
    payloads.iter().map(|payload| serde_json::from_str(payload).unwrap()).collect()
}

fn word(id: u8) -> Value {
    json!({"id": id, "text": char::from(id).to_string(), "logprob": -0.5, "special": false})
}

#[tokio::test]
async fn an_answer_is_an_object_with_details_if_asked_for() {
    let server = TestServer::start(Script::saying(likely(0, "ab", -0.5, FinishReason::Stop))).await;
    let plain = server.answered("/generate", &json!({"inputs": "hi"})).await;
    assert_eq!(plain, json!({"generated_text": "ab"}));
    let parameters = json!({"details": true, "return_full_text": true, "max_new_tokens": 9, "seed": 7, "top_n_tokens": 1, "do_sample": true});
    let detailed = server.answered("/generate", &json!({"inputs": "hi", "parameters": parameters})).await;
    assert_eq!(
        detailed,
        json!({"generated_text": "hiab", "details": {"finish_reason": "eos_token", "generated_tokens": 2,
            "seed": 7, "prefill": [], "tokens": [word(97), word(98)], "top_tokens": [[word(97)], [word(97)]]}})
    );
    let asked = server.script.asked.lock();
    assert_eq!((asked[0].sampling.temperature, asked[0].logprobs), (0.0, false), "the likeliest unless told");
    assert_eq!(
        (asked[1].sampling.temperature, asked[1].sampling.seed, asked[1].stop.max_tokens),
        (1.0, 7, 9)
    );
}

#[tokio::test]
async fn what_is_posted_to_the_root_says_how_it_is_answered() {
    let server = TestServer::start(Script::saying(likely(0, "ab", -0.5, FinishReason::Stop))).await;
    let whole = server.answered("/", &json!({"inputs": "hi", "stream": false})).await;
    assert_eq!(whole, json!([{"generated_text": "ab"}]));
    let root = server.events("/", &json!({"inputs": "hi", "stream": true})).await;
    assert_eq!(root, server.events("/generate_stream", &json!({"inputs": "hi"})).await);
}

#[tokio::test]
async fn a_stream_tells_tokens_and_its_end_with_the_last() {
    let details = |reason: &str, tokens: u32| json!({"finish_reason": reason, "generated_tokens": tokens, "input_length": 2, "seed": null});
    let step = |index: u32, id: u8| json!({"index": index, "token": word(id), "generated_text": null, "details": null});
    let with_end = |mut step: Value, text: &str, end: Value| {
        step["generated_text"] = json!(text);
        step["details"] = end;
        step
    };
    let server = TestServer::start(Script::saying(likely(0, "ab", -0.5, FinishReason::Length))).await;
    let length = server
        .events("/generate_stream", &json!({"inputs": "hi", "parameters": {"max_new_tokens": 2}}))
        .await;
    assert_eq!(json_of(&length), [step(1, 97), with_end(step(2, 98), "ab", details("length", 2))]);
    let stopped =
        server.events("/generate_stream", &json!({"inputs": "hi", "parameters": {"stop": ["b"]}})).await;
    assert_eq!(json_of(&stopped), [step(1, 97), with_end(step(2, 98), "ab", details("stop_sequence", 2))]);
    let server = TestServer::start(Script::saying(likely(0, "a", -0.5, FinishReason::Stop))).await;
    let ended = json_of(&server.events("/generate_stream", &json!({"inputs": "hi"})).await);
    let eos = json!({"id": 257, "text": "", "logprob": null, "special": true});
    let last = json!({"index": 2, "token": eos, "generated_text": "a", "details": details("eos_token", 1)});
    assert_eq!(ended, [step(1, 97), last]);
}

#[tokio::test]
async fn the_best_of_several_brings_the_others_along() {
    let said =
        [likely(0, "a", -2.0, FinishReason::Length), likely(1, "b", -1.0, FinishReason::Length)].concat();
    let server = TestServer::start(Script::saying(said)).await;
    let parameters = json!({"best_of": 2, "details": true, "temperature": 0.5});
    let answer = server.answered("/generate", &json!({"inputs": "hi", "parameters": parameters})).await;
    assert_eq!(answer["generated_text"], "b");
    assert_eq!(answer["details"]["best_of_sequences"][0]["generated_text"], "a");
    assert!(answer["details"].get("generated_text").is_none());
}

#[tokio::test]
async fn refusals_are_tgis_and_name_the_field() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for (parameters, field) in [
        (json!({"max_new_tokens": 0}), "parameters.max_new_tokens"),
        (json!({"max_new_tokens": 1_000_000}), "1000000 for the answer"),
        (json!({"temperature": 0}), "parameters.temperature"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "parameters.stop"),
        (json!({"typical_p": 0.5}), "parameters.typical_p"),
        (json!({"watermark": true}), "parameters.watermark"),
        (json!({"decoder_input_details": true}), "parameters.decoder_input_details"),
        (json!({"best_of": 99}), "frontend.max_choices"),
    ] {
        for path in ["/generate", "/generate_stream", "/"] {
            let response = server.post(path, &json!({"inputs": "hi", "parameters": parameters})).await;
            assert_eq!(response.status(), 422, "{parameters}");
            let error: Value = response.json().await.unwrap();
            assert_eq!(error["error_type"], "validation");
            assert!(error["error"].as_str().unwrap().contains(field), "{parameters}: {error}");
        }
    }
    assert!(server.script.asked.lock().is_empty());
    let mut broken = likely(0, "a", -0.5, FinishReason::Stop);
    broken[1] = Event::Failed(Failure::new(ErrorCode::Unavailable, "no node"));
    let server = TestServer::start(Script::saying(broken)).await;
    let events = json_of(&server.events("/generate_stream", &json!({"inputs": "hi"})).await);
    assert_eq!(events.last().unwrap()["error_type"], "overloaded");
}

#[tokio::test]
async fn the_server_and_its_tokens_are_told() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let info: Value = server.get("/info").await.json().await.unwrap();
    assert_eq!((&info["model_id"], &info["max_total_tokens"]), (&json!("mock"), &json!(CONTEXT)));
    assert_eq!((&info["max_input_tokens"], &info["max_best_of"]), (&json!(CONTEXT - 1), &json!(8)));
    let tokens = server.answered("/tokenize", &json!({"inputs": "a<|im_end|>"})).await;
    let place = |id: u32, text: &str, start: u32, stop: u32| json!({"id": id, "text": text, "start": start, "stop": stop});
    assert_eq!(tokens, json!([place(97, "a", 0, 1), place(257, "<|im_end|>", 1, 11)]));
    let refused = server.post("/tokenize", &json!({"inputs": 5})).await;
    assert_eq!(refused.json::<Value>().await.unwrap()["error_type"], "validation");
}
