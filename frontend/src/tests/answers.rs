//! Calls that are answered whole.

use std::sync::atomic::Ordering;

use baton_protocol::{Bill, Event, FinishReason, PromptLogprobs, PromptPart, PromptToken, Token, TopLogprob};
use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, bytes, says, token};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn messages(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

#[tokio::test]
async fn a_chat_answer_has_openais_shape() {
    let server = TestServer::start(Script::saying(says(&["hello", "world"]))).await;
    let body = json!({"model": "mock", "messages": messages("hi"), "n": 2, "user": "me", "store": false});
    let response = server.chat(&body).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let timing = response.headers()["server-timing"].to_str().unwrap().to_owned();
    assert_eq!(
        timing,
        "queue;dur=0, earlier;dur=0, prefill;dur=0, transfer;dur=0, wait;dur=0, decode;dur=1.5"
    );
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["id"], format!("chatcmpl-{id}"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "mock");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = |index: u32, text: &str| {
        json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": null, "finish_reason": "length"})
    };
    assert_eq!(answer["choices"], json!([choice(0, "hello"), choice(1, "world")]));
    let prompt_tokens = server.script.asked.lock()[0].tokens.len();
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], prompt_tokens);
    assert_eq!(usage["completion_tokens"], 10);
    assert_eq!(usage["total_tokens"], prompt_tokens + 10);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 5);
    assert_eq!(usage["baton_bill"]["transfer_pages"], 7);
    assert_eq!(usage["baton_bill"]["decode_ms"], 1.5);
    assert_eq!(usage["baton_bill"]["prefill_node"], Value::Null);
}

#[tokio::test]
async fn the_request_says_what_the_client_said() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = json!({"model": "mock", "messages": messages("hi"), "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 2, "seed": -1,
        "logit_bias": {"65": 3}, "max_tokens": 9, "min_tokens": 2, "ignore_eos": true, "stop_token_ids": [66],
        "logprobs": true, "top_logprobs": 4});
    server.answered(CHAT, &body).await;
    let request = server.script.asked.lock()[0].clone();
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.9, 7, 0.1));
    let penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty);
    assert_eq!(penalties, (1.5, -1.0, 2.0));
    assert_eq!((sampling.logit_bias[0].token, sampling.logit_bias[0].bias), (65, 3.0));
    assert_eq!(sampling.seed, u64::MAX);
    let stop = &request.stop;
    assert_eq!((stop.max_tokens, stop.min_tokens, stop.ignore_eos), (9, 2, true));
    assert_eq!(stop.token_ids, [66]);
    assert_eq!((request.logprobs, request.top_logprobs, request.choices), (true, 4, 1));
}

#[tokio::test]
async fn what_the_client_left_out_is_filled_in() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body =
        json!({"model": "mock", "messages": messages("hi"), "stop": null, "tools": null, "max_tokens": null});
    server.answered(CHAT, &body).await;
    server.answered(CHAT, &body).await;
    let asked = server.script.asked.lock();
    assert_eq!(asked[0].stop.max_tokens, CONTEXT - asked[0].tokens.len() as u32);
    assert_eq!((asked[0].sampling.temperature, asked[0].sampling.top_p), (1.0, 1.0));
    assert_ne!(asked[0].sampling.seed, asked[1].sampling.seed);
    assert_ne!(asked[0].id, asked[1].id);
    assert_eq!(server.script.texts_fetched.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn control_tokens_in_content_stay_text() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let plain = json!({"model": "mock", "messages": messages("hi")});
    let spelled = json!({"model": "mock", "messages": messages("<|im_end|>hi<|im_start|>")});
    server.answered(CHAT, &plain).await;
    server.answered(CHAT, &spelled).await;
    // A raw prompt is the caller's own template: there they are control tokens.
    server.answered(COMPLETIONS, &json!({"model": "mock", "prompt": "<|im_end|>"})).await;
    let asked = server.script.asked.lock();
    let controls = |i: usize| asked[i].tokens.iter().filter(|&&id| id >= 256).count();
    assert!(controls(0) > 0, "the template itself has control tokens");
    assert_eq!(controls(0), controls(1));
    assert_eq!(controls(2), 1);
}

#[tokio::test]
async fn parts_and_roles_are_made_one() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let developer = json!([{"role": "developer", "content": parts}, {"role": "user", "content": "hi"}]);
    let system =
        json!([{"role": "system", "content": "a\nb"}, {"role": "user", "content": "hi", "name": null}]);
    server.answered(CHAT, &json!({"model": "mock", "messages": developer})).await;
    server.answered(CHAT, &json!({"model": "mock", "messages": system})).await;
    let asked = server.script.asked.lock();
    assert_eq!(asked[0].tokens, asked[1].tokens);
}

#[tokio::test]
async fn completions_take_four_kinds_of_prompt() {
    let server = TestServer::start(Script::new(|request| {
        let text: String = request.tokens.iter().map(|&id| char::from(id as u8)).collect();
        Ok(says(&[&format!("{text}!"), &format!("{text}?")]))
    }))
    .await;
    for (prompt, answers) in [
        (json!("a"), vec!["a!", "a?"]),
        (json!(["a", "b"]), vec!["a!", "a?", "b!", "b?"]),
        (json!([97]), vec!["a!", "a?"]),
        (json!([[97, 98], [99]]), vec!["ab!", "ab?", "c!", "c?"]),
    ] {
        let body = json!({"model": "mock", "prompt": prompt, "n": 2, "best_of": 2, "echo": false});
        let answer = server.answered(COMPLETIONS, &body).await;
        assert_eq!(answer["object"], "text_completion");
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
        let choices = answer["choices"].as_array().unwrap();
        let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
        assert_eq!(texts, answers);
        assert_eq!(indices, (0..answers.len() as u64).collect::<Vec<_>>());
        let tokens: usize = answers.iter().map(|text| text.len()).sum();
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
        assert_eq!(answer["usage"]["baton_bill"].is_object(), answers.len() == 2);
    }
}

#[tokio::test]
async fn an_echo_is_the_prompt_before_each_answer() {
    let server = TestServer::start(Script::saying(says(&["!", "?"]))).await;
    let body = json!({"model": "mock", "prompt": ["a", "b"], "n": 2, "echo": true});
    let answer = server.answered(COMPLETIONS, &body).await;
    let texts: Vec<_> = (0..4).map(|i| answer["choices"][i]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a!", "a?", "b!", "b?"]);
    let tokens = json!({"model": "mock", "prompt": [97, 98], "n": 2, "echo": true, "stream": true});
    let chunks = server.events(COMPLETIONS, &tokens).await;
    let of = |index: u64| -> String {
        let chunks =
            chunks[..chunks.len() - 1].iter().map(|chunk| serde_json::from_str::<Value>(chunk).unwrap());
        let choices =
            chunks.map(|chunk| chunk["choices"][0].clone()).filter(|choice| choice["index"] == index);
        choices.map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((of(0).as_str(), of(1).as_str()), ("ab!", "ab?"));
}

#[tokio::test]
async fn the_best_choices_are_the_likeliest_a_token() {
    let choice = |choice, id, logprobs: &[f32]| -> Vec<Event> {
        let token = |(position, &logprob): (u32, &f32)| {
            Event::Token(Token { choice, position, id, logprob: Some(logprob), top: Vec::new() })
        };
        let finished = Event::Finished { choice, reason: FinishReason::Length };
        (0..).zip(logprobs).map(token).chain([finished]).collect()
    };
    // The sum prefers the first, the mean the second.
    let events =
        [choice(0, 97, &[-2.0]), choice(1, 98, &[-1.0, -1.0, -1.0]), choice(2, 99, &[-3.0])].concat();
    let server = TestServer::start(Script::saying(events)).await;
    let body = json!({"model": "mock", "prompt": ["x", "y"], "n": 2, "best_of": 3});
    let answer = server.answered(COMPLETIONS, &body).await;
    let choices = answer["choices"].as_array().unwrap();
    let shown: Vec<_> = choices.iter().map(|choice| (&choice["index"], &choice["text"])).collect();
    let expected = [(0, "bbb"), (1, "a"), (2, "bbb"), (3, "a")].map(|(i, text)| (json!(i), json!(text)));
    assert_eq!(shown, expected.iter().map(|(i, text)| (i, text)).collect::<Vec<_>>());
    assert!(choices.iter().all(|choice| choice["logprobs"].is_null()), "nobody asked for them");
    assert_eq!(answer["usage"]["completion_tokens"], 10, "all that were generated");
    assert!(server.script.asked.lock().iter().all(|asked| asked.choices == 3 && asked.logprobs));
}

#[tokio::test]
async fn vllms_switches_do_what_they_say() {
    let mut events = bytes(0, "a.b");
    events.insert(2, token(0, 2, 257));
    events.push(Event::Finished { choice: 0, reason: FinishReason::Length });
    let server = TestServer::start(Script::saying(events)).await;
    let answer = |extra: Value| {
        let mut body = json!({"model": "mock", "prompt": "12345678", "ignore_eos": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let server = &server;
        async move { server.answered(COMPLETIONS, &body).await["choices"][0].clone() }
    };
    assert_eq!(answer(json!({})).await["text"], "a.b");
    assert_eq!(answer(json!({"skip_special_tokens": false})).await["text"], "a.<|im_end|>b");
    let stopped = answer(json!({"stop": ["."]})).await;
    assert_eq!((&stopped["text"], &stopped["stop_reason"]), (&json!("a"), &json!(".")));
    let shown = answer(json!({"stop": ["."], "include_stop_str_in_output": true})).await;
    assert_eq!(answer(json!({"stop": ["."], "no_stop_trim": true})).await, shown);
    assert_eq!((&shown["text"], &shown["finish_reason"]), (&json!("a."), &json!("stop")));
    answer(json!({"truncate_prompt_tokens": 3})).await;
    answer(json!({"truncate_prompt_tokens": -1, "max_tokens": CONTEXT - 2})).await;
    let asked: Vec<_> = server.script.asked.lock().iter().map(|asked| asked.tokens.clone()).collect();
    let tokens = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(asked[5..], [tokens("678"), tokens("78")]);
}

#[tokio::test]
async fn what_routers_of_others_add_to_a_call_is_taken_and_the_opposite_refused() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let both = json!({"stream": false, "no_stop_trim": false, "ignore_eos": false, "skip_special_tokens": true,
        "return_hidden_states": false});
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": false,
        "continue_final_message": false, "separate_reasoning": true, "stream_reasoning": true,
        "include_reasoning": true});
    let completion = json!({"prompt": "hi", "echo": false});
    for (path, own) in [(CHAT, chat), (COMPLETIONS, completion)] {
        let mut body = json!({"model": "mock", "max_tokens": 3});
        for more in [&both, &own] {
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        server.answered(path, &body).await;
        for field in ["return_hidden_states", "separate_reasoning", "stream_reasoning", "include_reasoning"] {
            let Some(usual) = body[field].as_bool() else { continue };
            let mut other = body.clone();
            other[field] = json!(!usual);
            let refused = server.post(path, &other).await;
            assert_eq!(refused.status(), 400, "{path} {field}");
            assert!(refused.text().await.unwrap().contains(field), "{path} {field}");
        }
    }
}

#[tokio::test]
async fn an_answer_can_be_begun_by_the_caller() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    // Thoughts come back as they were told: by two names.
    let talk = json!([{"role": "user", "content": "q"},
        {"role": "assistant", "content": "so", "reasoning": "hm", "reasoning_content": "hm"}]);
    let body = json!({"model": "mock", "messages": talk, "continue_final_message": true});
    server.answered(CHAT, &body).await;
    let body = json!({"model": "mock", "messages": talk, "add_generation_prompt": false, "reasoning_effort": "none"});
    server.answered(CHAT, &body).await;
    let asked = server.script.asked.lock();
    let tail = |i: usize| asked[i].tokens[asked[i].tokens.len() - 3..].to_vec();
    assert_eq!(tail(0), [u32::from(b'\n'), u32::from(b's'), u32::from(b'o')]);
    assert_eq!(tail(1), [u32::from(b'o'), 257, u32::from(b'\n')]);
}

fn with_logprobs() -> Vec<Event> {
    let top = |id, logprob| TopLogprob { id, logprob };
    let bytes = [0xc3, 0xa9];
    let mut events: Vec<_> = bytes
        .iter()
        .zip(0..)
        .map(|(&id, position)| {
            let top = vec![top(id, -0.5), top(97, f32::NEG_INFINITY)];
            Event::Token(Token { choice: 0, position, id, logprob: Some(-0.5), top })
        })
        .collect();
    events.push(Event::Bill(Bill::default()));
    events.push(Event::Finished { choice: 0, reason: FinishReason::Stop });
    events
}

#[tokio::test]
async fn log_probabilities_have_bytes_even_within_a_character() {
    let server = TestServer::start(Script::saying(with_logprobs())).await;
    let body = json!({"model": "mock", "messages": messages("hi"), "logprobs": true, "top_logprobs": 2});
    let answer = server.answered(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "é");
    assert_eq!(
        answer["choices"][0]["logprobs"]["content"][1],
        json!({"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xa9], "top_logprobs": [
            {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xa9]},
            {"token": "a", "logprob": -9999.0, "bytes": [97]},
        ]})
    );
    let body = json!({"model": "mock", "prompt": "hi", "logprobs": 2});
    let answer = server.answered(COMPLETIONS, &body).await;
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"tokens": ["\u{fffd}", "\u{fffd}"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
            "top_logprobs": [{"\u{fffd}": -0.5, "a": -9999.0}, {"\u{fffd}": -0.5, "a": -9999.0}]})
    );
}

#[tokio::test]
async fn a_stop_string_ends_text_tokens_and_work() {
    // "wor" ends with the third byte of "world"; the rest was under way already.
    let mut events = bytes(0, "hello world");
    events.extend(bytes(1, "hello"));
    events.push(Event::Bill(Bill::default()));
    events.push(Event::Finished { choice: 1, reason: FinishReason::Length });
    let server = TestServer::start(Script::saying(events)).await;
    let body = json!({"model": "mock", "messages": messages("hi"), "n": 2, "stop": ["wor", "xyz"]});
    let answer = server.answered(CHAT, &body).await;
    let choice =
        |i: usize| (&answer["choices"][i]["message"]["content"], &answer["choices"][i]["finish_reason"]);
    assert_eq!(choice(0), (&json!("hello "), &json!("stop")));
    assert_eq!(choice(1), (&json!("hello"), &json!("length")));
    assert_eq!(answer["usage"]["completion_tokens"], 9 + 5);
    server.script.dropped(1).await;
    assert_eq!(*server.script.stopped.lock(), [0]);
}

#[tokio::test]
async fn tokens_that_end_the_answer_are_counted_but_not_shown() {
    let mut events = bytes(0, "hi");
    events.push(token(0, 2, u32::from(b'!')));
    events.push(Event::Finished { choice: 0, reason: FinishReason::Stop });
    let server = TestServer::start(Script::saying(events)).await;
    let body = json!({"model": "mock", "prompt": "hi", "stop_token_ids": [33]});
    let answer = server.answered(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["text"], "hi");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_broken_character_at_the_end_is_marked() {
    let mut events = bytes(0, "a");
    events.push(token(0, 1, 0xf0));
    events.push(Event::Finished { choice: 0, reason: FinishReason::Length });
    let server = TestServer::start(Script::saying(events)).await;
    let answer = server.answered(COMPLETIONS, &json!({"model": "mock", "prompt": "hi"})).await;
    assert_eq!(answer["choices"][0]["text"], "a\u{fffd}");
}

#[tokio::test]
async fn models_health_and_readiness() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "mock");
    let model: Value = server.get("/v1/models/mock").await.json().await.unwrap();
    assert_eq!(model, list["data"][0]);
    assert_eq!(model["max_model_len"], CONTEXT);

    assert_eq!(server.get("/health").await.status(), 200);
    assert_eq!(server.get("/ready").await.status(), 200);
    server.script.ready.lock().push("no decode node".into());
    let not_ready = server.get("/ready").await;
    assert_eq!(not_ready.status(), 503);
    assert_eq!(not_ready.json::<Value>().await.unwrap()["reasons"], json!(["no decode node"]));
    assert_eq!(server.get("/health").await.status(), 200);
}

#[tokio::test]
async fn metrics_count_calls_by_route_and_status() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    let body = json!({"model": "mock", "messages": messages("hi")});
    server.answered(CHAT, &body).await;
    server.events(CHAT, &json!({"model": "mock", "messages": messages("hi"), "stream": true})).await;
    assert_eq!(server.chat(&json!({})).await.status(), 400);
    assert_eq!(server.get("/anything").await.status(), 404);
    let text = server.get("/metrics").await.text().await.unwrap();
    for line in [
        "http_requests_total{route=\"chat\",status=\"200\"} 2",
        "http_requests_total{route=\"chat\",status=\"400\"} 1",
        "http_requests_total{route=\"other\",status=\"404\"} 1",
        "http_requests_running 1",
        "http_time_to_first_token_seconds_count{route=\"chat\"} 2",
        "http_broken_streams_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// Two tokens of a prompt of three, and then `with_logprobs`.
fn with_prompt() -> Vec<Event> {
    let top = |id, logprob| TopLogprob { id, logprob };
    let likely = PromptToken { logprob: -0.5, rank: 1, top: vec![top(98, -0.5), top(122, -1.5)] };
    let unlikely = PromptToken { logprob: -7.0, rank: 9, top: vec![top(122, -0.25), top(121, -2.0)] };
    let part = |first, token| Event::Prompt(PromptPart { first, tokens: vec![token] });
    [vec![Event::Accepted { cached_tokens: 0 }, part(1, likely), part(2, unlikely)], with_logprobs()].concat()
}

#[tokio::test]
async fn an_echo_tells_of_the_prompt_too() {
    let server = TestServer::start(Script::saying(with_prompt())).await;
    let mut body = json!({"model": "mock", "prompt": "abc", "logprobs": 1, "echo": true});
    let answer = server.answered("/v1/completions", &body).await;
    let choice = &answer["choices"][0];
    assert!(choice["text"].as_str().unwrap().starts_with("abc"), "{choice}");
    let told = &choice["logprobs"];
    assert_eq!(told["tokens"].as_array().unwrap()[..3], ["a", "b", "c"].map(Value::from));
    assert_eq!(told["token_logprobs"].as_array().unwrap()[..3], [Value::Null, json!(-0.5), json!(-7.0)]);
    assert_eq!(
        told["top_logprobs"].as_array().unwrap()[..3],
        [Value::Null, json!({"b": -0.5}), json!({"z": -0.25})]
    );
    assert_eq!(told["text_offset"].as_array().unwrap()[..4], [0, 1, 2, 3].map(Value::from));
    let asked = server.script.asked.lock()[0].prompt_logprobs;
    assert_eq!(asked, Some(PromptLogprobs { from: 1, top: 1 }));
    // A stream says the same in its first event.
    body["stream"] = json!(true);
    let events = server.events("/v1/completions", &body).await;
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "abc");
    assert_eq!(first["choices"][0]["logprobs"]["token_logprobs"], json!([null, -0.5, -7.0]));
    let second: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(second["choices"][0]["logprobs"]["text_offset"], json!([3]));
    // Nothing behind it.
    let nothing = json!({"model": "mock", "prompt": "abc", "logprobs": 0, "echo": true, "max_tokens": 0});
    let answer = server.answered("/v1/completions", &nothing).await;
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["usage"]["completion_tokens"]),
        (&json!("abc"), &json!(0))
    );
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!(["a", "b", "c"]));
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"], json!([null, {}, {}]));
}

#[tokio::test]
async fn a_prompt_is_told_of_in_vllms_words() {
    let server = TestServer::start(Script::saying(with_prompt())).await;
    let told = json!([
        null,
        {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
        {
            "99": {"logprob": -7.0, "rank": 9, "decoded_token": "c"},
            "122": {"logprob": -0.25, "rank": 1, "decoded_token": "z"},
        },
    ]);
    let body = json!({"model": "mock", "prompt": "abc", "prompt_logprobs": 1});
    let answer = server.answered("/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["prompt_logprobs"], told);
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let body = json!({"model": "mock", "messages": messages("abc"), "prompt_logprobs": 0});
    let answer = server.answered("/v1/chat/completions", &body).await;
    let told = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (3, &Value::Null));
    assert_eq!(told[1].as_object().unwrap().len(), 1, "the token alone");
}
