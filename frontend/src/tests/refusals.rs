//! Bodies that are refused: each with its status, in OpenAI's form, naming the parameter.

use baton_protocol::{ErrorCode, Failure};
use serde_json::{Value, json};

use super::script::{CONTEXT, Script, TestServer, bytes, says};
use crate::Config;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// What is expected of a refusal.
struct Refused<'a> {
    status: u16,
    param: Option<&'a str>,
    code: &'a str,
}

fn server() -> impl Future<Output = TestServer> {
    TestServer::start(Script::saying(says(&["ok"])))
}

/// `base` with some fields set; `null` removes a field.
fn with(mut base: Value, changes: &Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => base.as_object_mut().unwrap().remove(field),
            value => base.as_object_mut().unwrap().insert(field.clone(), value.clone()),
        };
    }
    base
}

fn good_chat() -> Value {
    json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}]})
}

fn good_completion() -> Value {
    json!({"model": "mock", "prompt": "hi"})
}

async fn check(response: reqwest::Response, expected: &Refused<'_>, what: &str) {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"), "{what}");
    assert_eq!(response.headers()["content-type"], "application/json", "{what}");
    let body: Value = response.json().await.unwrap();
    let error = &body["error"];
    assert_eq!(status, expected.status, "{what}: {body}");
    assert_eq!(error["param"].as_str(), expected.param, "{what}: {body}");
    assert_eq!(error["code"], expected.code, "{what}: {body}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{what}: {body}");
    assert!(error["type"].is_string(), "{what}: {body}");
}

async fn check_all(server: &TestServer, path: &str, good: &Value, table: &[(Value, &str, &str)]) {
    for (change, param, code) in table {
        let body = with(good.clone(), change);
        let expected = Refused { status: 400, param: Some(param), code };
        check(server.post(path, &body).await, &expected, &change.to_string()).await;
    }
    assert!(server.script.asked.lock().is_empty(), "a refused body was dispatched");
}

#[tokio::test]
async fn messages_out_of_type_or_range() {
    let server = server().await;
    let table = [
        (json!({"model": 7}), "model"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"role": "king", "content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": 1, "content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": []}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": ["hi"]}]}), "messages[0].content[0]"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}),
            "messages[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}]}),
            "messages[0].reasoning",
        ),
    ];
    check_all(&server, CHAT, &good_chat(), &table.map(|(change, param)| (change, param, "invalid_value")))
        .await;
}

#[tokio::test]
async fn parameters_out_of_type_or_range() {
    let server = server().await;
    let table = [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "1"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": 1.1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 9}), "n"),
        (json!({"n": 1.0}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": "10"}), "max_tokens"),
        (json!({"max_tokens": 1e3}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_tokens"),
        (json!({"min_tokens": 6, "max_tokens": 5}), "min_tokens"),
        (json!({"min_tokens": CONTEXT}), "min_tokens"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", 5]}), "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": "x".repeat(257)}), "stop"),
        (json!({"stop_token_ids": 5}), "stop_token_ids"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"stop_token_ids": [1_000_000]}), "stop_token_ids"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"logit_bias": {"5": "1"}}), "logit_bias.5"),
        (json!({"logit_bias": {"1000000": 1}}), "logit_bias"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "1"}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"user": 5}), "user"),
        (json!({"reasoning_effort": "very"}), "reasoning_effort"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"skip_special_tokens": 1}), "skip_special_tokens"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), "chat_template_kwargs.enable_thinking"),
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        (json!({"metadata": "x"}), "metadata"),
    ];
    let table = table.map(|(change, param)| (change, param, "invalid_value"));
    check_all(&server, CHAT, &good_chat(), &table).await;
}

#[tokio::test]
async fn parameters_that_are_missing_or_not_supported() {
    let server = server().await;
    let unsupported = [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "alloy"}}), "audio"),
        (json!({"store": true}), "store"),
        (json!({"service_tier": "scale"}), "service_tier"),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"chat_template_kwargs": {"tools": []}}), "chat_template_kwargs.tools"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"messages": [{"role": "user", "content": "x", "name": "bob"}]}), "messages[0].name"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"stream": true, "stream_options": {"continuous": true}}), "stream_options.continuous"),
    ];
    let table = unsupported.map(|(change, param)| (change, param, "unsupported_parameter"));
    check_all(&server, CHAT, &good_chat(), &table).await;
    let missing = [
        (json!({"model": null}), "model"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"messages": [{"role": "user", "content": [{"text": "x"}]}]}), "messages[0].content[0].type"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
    ];
    check_all(
        &server,
        CHAT,
        &good_chat(),
        &missing.map(|(change, param)| (change, param, "missing_parameter")),
    )
    .await;
}

#[tokio::test]
async fn completions_have_rules_of_their_own() {
    let server = server().await;
    let table = [
        (json!({"prompt": null}), "prompt", "missing_parameter"),
        (json!({"prompt": 5}), "prompt", "invalid_value"),
        (json!({"prompt": ""}), "prompt", "invalid_value"),
        (json!({"prompt": []}), "prompt", "invalid_value"),
        (json!({"prompt": ["a", ""]}), "prompt[1]", "invalid_value"),
        (json!({"prompt": ["a", 5]}), "prompt[1]", "invalid_value"),
        (json!({"prompt": [1, "a"]}), "prompt", "invalid_value"),
        (json!({"prompt": [[1], [2.5]]}), "prompt[1]", "invalid_value"),
        (json!({"prompt": [1_000_000]}), "prompt", "invalid_value"),
        (json!({"prompt": [[1], [1_000_000]]}), "prompt[1]", "invalid_value"),
        (json!({"prompt": vec!["a"; 33]}), "prompt", "invalid_value"),
        (json!({"logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"logprobs": true}), "logprobs", "invalid_value"),
        (json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"echo": true, "max_tokens": 0, "min_tokens": 1}), "min_tokens", "invalid_value"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs", "invalid_value"),
        (json!({"echo": true, "truncate_prompt_tokens": 1}), "echo", "invalid_value"),
        (json!({"suffix": "x"}), "suffix", "unsupported_parameter"),
        (json!({"best_of": 9}), "best_of", "invalid_value"),
        (json!({"best_of": 1, "n": 2}), "best_of", "invalid_value"),
        (json!({"best_of": 2, "stream": true}), "best_of", "invalid_value"),
        (json!({"top_logprobs": 2}), "top_logprobs", "unsupported_parameter"),
        (json!({"messages": []}), "messages", "unsupported_parameter"),
        (json!({"prompt": vec![5; CONTEXT as usize]}), "prompt", "context_length_exceeded"),
        (json!({"prompt": "x".repeat(CONTEXT as usize)}), "prompt", "context_length_exceeded"),
        (json!({"prompt": "hi", "max_tokens": CONTEXT - 1}), "max_tokens", "context_length_exceeded"),
    ];
    check_all(&server, COMPLETIONS, &good_completion(), &table).await;
}

#[tokio::test]
async fn limits_are_settings_and_named() {
    let config = Config {
        max_choices: 2,
        max_prompts: 2,
        max_messages: 1,
        max_input_tokens: 20,
        max_total_tokens: 30,
        max_logprobs: 3,
        max_prompt_logprobs: 18,
        max_stop_strings: 1,
        max_stop_bytes: 2,
        max_stop_token_ids: 1,
        max_logit_biases: 1,
        ..Config::default()
    };
    let server = TestServer::configured(Script::saying(says(&["ok", "ok"])), config).await;
    let completions = [
        (json!({"n": 3}), "n", "max_choices"),
        (json!({"best_of": 3}), "best_of", "max_choices"),
        (json!({"prompt": ["a", "b", "c"]}), "prompt", "max_prompts"),
        (json!({"prompt": "x".repeat(21)}), "prompt", "max_input_tokens"),
        (json!({"prompt": "x".repeat(10), "max_tokens": 21}), "max_tokens", "max_total_tokens"),
        (json!({"logprobs": 4}), "logprobs", "max_logprobs"),
        (json!({"prompt_logprobs": 4}), "prompt_logprobs", "max_logprobs"),
        // Nine tokens of the ten that follow one, with one alternative each, are as many as may be.
        (json!({"prompt": "x".repeat(11), "prompt_logprobs": 1}), "prompt_logprobs", "max_prompt_logprobs"),
        (
            json!({"prompt": ["x".repeat(7), "x".repeat(7)], "echo": true, "logprobs": 1}),
            "logprobs",
            "max_prompt_logprobs",
        ),
        (json!({"stop": ["a", "b"]}), "stop", "max_stop_strings"),
        (json!({"stop": "abc"}), "stop", "max_stop_bytes"),
        (json!({"stop_token_ids": [1, 2]}), "stop_token_ids", "max_stop_token_ids"),
        (json!({"logit_bias": {"1": 1, "2": 1}}), "logit_bias", "max_logit_biases"),
    ];
    let chats = [
        (json!({"messages": vec![json!({"role": "user", "content": "x"}); 2]}), "messages", "max_messages"),
        (json!({"logprobs": true, "top_logprobs": 4}), "top_logprobs", "max_logprobs"),
    ];
    let completions = completions.map(|row| (COMPLETIONS, good_completion(), row));
    let chats = chats.map(|row| (CHAT, good_chat(), row));
    for (path, good, (change, param, setting)) in completions.into_iter().chain(chats) {
        let response = server.post(path, &with(good, &change)).await;
        assert_eq!(response.status(), 400, "{change}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["param"], param, "{error}");
        let setting = format!("(frontend.{setting})");
        assert!(error["message"].as_str().unwrap().contains(&setting), "{error}");
    }
    assert!(server.script.asked.lock().is_empty());
    // At the limits.
    let within = json!({"prompt": ["x".repeat(20), "y".repeat(20)], "max_tokens": 10, "n": 2, "logprobs": 3,
        "stop": "ab", "stop_token_ids": [1], "logit_bias": {"1": 1}});
    assert_eq!(server.post(COMPLETIONS, &with(good_completion(), &within)).await.status(), 200);
}

#[tokio::test]
async fn one_stream_more_than_may_be_open_is_refused() {
    let config = Config { max_streams: 1, ..Config::default() };
    let server = TestServer::configured(Script::holding(bytes(0, "ab")), config).await;
    let streaming = with(good_chat(), &json!({"stream": true}));
    let open = server.chat(&streaming).await;
    assert_eq!(open.status(), 200);
    let refused = server.chat(&streaming).await;
    assert!(refused.headers().contains_key("retry-after"));
    check(refused, &Refused { status: 429, param: None, code: "overloaded" }, "second stream").await;
    drop(open);
    server.script.dropped(1).await;
    // The place is given back after the answer was dropped.
    loop {
        match server.chat(&streaming).await.status().as_u16() {
            200 => break,
            status => assert_eq!(status, 429),
        }
    }
}

#[tokio::test]
async fn text_that_cannot_fit_is_not_tokenized() {
    let server = server().await;
    let message = |bytes: usize| json!([{"role": "user", "content": "x".repeat(bytes)}]);
    let table = [
        (json!({"messages": message(CONTEXT as usize)}), "messages", "context_length_exceeded"),
        (json!({"messages": message(CONTEXT as usize * 16)}), "messages", "context_length_exceeded"),
        (json!({"messages": message(100_000)}), "messages", "context_length_exceeded"),
        (json!({"max_completion_tokens": CONTEXT}), "max_completion_tokens", "context_length_exceeded"),
    ];
    check_all(&server, CHAT, &good_chat(), &table).await;
}

#[tokio::test]
async fn bodies_that_are_not_what_we_call_json() {
    let server = server().await;
    let good = good_chat().to_string();
    let cut = (0..good.len()).map(|end| (good.as_bytes()[..end].to_vec(), None));
    let broken = [
        ("[]".to_owned(), None),
        ("null".to_owned(), None),
        (format!("{good}{good}"), None),
        (format!("{good}x"), None),
        ("{'model': 1}".to_owned(), None),
        (r#"{"model":"mock",}"#.to_owned(), None),
        (r#"{"model":"mock","n":01}"#.to_owned(), None),
        (r#"{"model":"mock","n":1e400}"#.to_owned(), None),
        (r#"{"model":"mock","temperature":NaN}"#.to_owned(), None),
        ("{\"model\":\"a\u{0}b\"}".to_owned(), None),
        (r#"{"model":"\ud800"}"#.to_owned(), None),
        (format!("{}{}", r#"{"a":"#.repeat(65), "[".repeat(100_000)), None),
        (format!(r#"{{"model":"mock","stop":{}"#, "[".repeat(100_000)), None),
        (format!(r#"{{"a":[{}0]}}"#, "0,".repeat(300_000)), None),
        (r#"{"model":"mock","model":"mock"}"#.to_owned(), Some("model")),
        (r#"{"n":1,"n":2,"model":"mock"}"#.to_owned(), Some("n")),
        (r#"{"messages":[{"role":"user","role":"system"}]}"#.to_owned(), Some("role")),
        (good.replace("}]", r#"}],"n":18446744073709551616"#), Some("n")),
        (good.replace("}]", r#"}],"max_tokens":99999999999999999999999"#), Some("max_tokens")),
        (good.replace("}]", r#"}],"seed":18446744073709551616"#), Some("seed")),
        (good.replace("}]", r#"}],"seed":-9223372036854775809"#), Some("seed")),
    ];
    let broken = broken.into_iter().map(|(body, param)| (body.into_bytes(), param));
    let not_utf8 = [(b"{\"model\":\"\xff\xfe\"}".to_vec(), None), (b"\xef\xbb\xbf{}".to_vec(), None)];
    for (body, param) in cut.chain(broken).chain(not_utf8) {
        let what = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let post =
            server.client.post(format!("{}{CHAT}", server.base)).header("content-type", "application/json");
        let code = if param.is_some() { "invalid_value" } else { "invalid_json" };
        check(post.body(body).send().await.unwrap(), &Refused { status: 400, param, code }, &what).await;
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn what_is_wrong_around_the_body() {
    let config = Config { max_body_bytes: 1000, ..Config::default() };
    let server = TestServer::configured(Script::saying(says(&["ok"])), config).await;
    let url = |path: &str| format!("{}{path}", server.base);
    let refused = |status, code| Refused { status, param: None, code };

    let body = good_chat().to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json5", ""] {
        let response =
            server.client.post(url(CHAT)).header("content-type", kind).body(body.clone()).send().await;
        check(response.unwrap(), &refused(415, "unsupported_media_type"), kind).await;
    }
    let compressed = server.client.post(url(CHAT)).header("content-encoding", "gzip").json(&good_chat());
    check(compressed.send().await.unwrap(), &refused(415, "unsupported_media_type"), "gzip").await;

    let large = with(good_chat(), &json!({"user": "x".repeat(1000)}));
    check(server.chat(&large).await, &refused(413, "body_too_large"), "large").await;

    check(server.get("/v1/nothing").await, &refused(404, "not_found"), "path").await;
    check(server.get("//v1/models").await, &refused(404, "not_found"), "path").await;
    let get = server.get(CHAT).await;
    assert_eq!(get.headers()["allow"], "POST");
    check(get, &refused(405, "method_not_allowed"), "method").await;

    let unknown = Refused { status: 404, param: Some("model"), code: "model_not_found" };
    check(server.chat(&with(good_chat(), &json!({"model": "x"}))).await, &unknown, "model").await;
    check(server.get("/v1/models/a/b").await, &unknown, "model").await;
}

#[tokio::test]
async fn failures_before_the_first_token_have_their_status() {
    for (code, status, name) in [
        (ErrorCode::InvalidRequest, 400, "invalid_request"),
        (ErrorCode::Overloaded, 429, "overloaded"),
        (ErrorCode::Unavailable, 503, "unavailable"),
        (ErrorCode::PeerLost, 503, "peer_lost"),
        (ErrorCode::DeadlineExceeded, 504, "deadline_exceeded"),
        (ErrorCode::Internal, 500, "internal"),
    ] {
        let failure = Failure::new(code, "no");
        let at_once = {
            let failure = failure.clone();
            Script::new(move |_| Err(failure.clone()))
        };
        let accepted = baton_protocol::Event::Accepted { cached_tokens: 0 };
        let later = Script::saying(vec![accepted, baton_protocol::Event::Failed(failure)]);
        for script in [at_once, later] {
            let server = TestServer::start(script).await;
            for stream in [false, true] {
                let response = server.chat(&with(good_chat(), &json!({"stream": stream}))).await;
                assert_eq!(response.headers().contains_key("retry-after"), code.is_retryable());
                check(response, &Refused { status, param: None, code: name }, name).await;
            }
        }
    }
}
