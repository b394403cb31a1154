//! What every dialect's bodies have in common: each field of each body, wrong in every way.

use serde_json::{Map, Value, json};

use super::script::{Script, TestServer, says};

/// A path, a body in which every field is set, and those that must be.
struct Route {
    path: &'static str,
    body: Value,
    required: &'static [&'static str],
}

fn routes() -> Vec<Route> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let openai = json!({"model": "mock", "n": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 1, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": 1},
        "seed": 1, "max_tokens": 5, "max_completion_tokens": 5, "min_tokens": 1, "ignore_eos": true, "stop": "a",
        "stop_token_ids": [1], "include_stop_str_in_output": true, "skip_special_tokens": true, "stream": true,
        "stream_options": {"include_usage": true}, "truncate_prompt_tokens": 99, "user": "u", "metadata": {"a": "b"},
        "store": false, "service_tier": "auto", "add_special_tokens": false, "no_stop_trim": false,
        "return_hidden_states": false});
    let with = |mut body: Value, more: Value| {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let chat = json!({"messages": messages, "logprobs": true, "top_logprobs": 1, "reasoning_effort": "none",
        "chat_template_kwargs": {}, "add_generation_prompt": true, "continue_final_message": false,
        "separate_reasoning": true, "stream_reasoning": true, "include_reasoning": true});
    let completion = json!({"prompt": "hi", "logprobs": 1, "best_of": 1});
    let anthropic = json!({"model": "mock", "max_tokens": 5, "messages": messages, "system": "s", "temperature": 0.5,
        "top_p": 0.5, "top_k": 1, "stop_sequences": ["a"], "stream": true, "metadata": {"user_id": "u"},
        "thinking": {"type": "disabled"}, "cache_control": {"type": "ephemeral"}, "service_tier": "auto"});
    let tgi = json!({"inputs": "hi", "model": "mock", "parameters": {"best_of": 1, "details": true, "do_sample": true,
        "frequency_penalty": 0.1, "max_new_tokens": 5, "repetition_penalty": 1.1, "return_full_text": true, "seed": 1,
        "stop": ["a"], "temperature": 0.5, "top_k": 1, "top_n_tokens": 1, "top_p": 0.5, "truncate": 9,
        "watermark": false, "decoder_input_details": false}});
    let sglang = json!({"text": "hi", "model": "mock", "rid": "r", "return_logprob": true, "top_logprobs_num": 1,
        "logprob_start_len": -1, "return_text_in_logprobs": true, "stream": true, "sampling_params": {
        "max_new_tokens": 5, "min_new_tokens": 1, "n": 1, "stop": "a", "stop_token_ids": [1], "temperature": 0.5,
        "top_p": 0.5, "top_k": 1, "min_p": 0.1, "frequency_penalty": 0.1, "presence_penalty": 0.1,
        "repetition_penalty": 1.1, "ignore_eos": true, "skip_special_tokens": true, "no_stop_trim": true,
        "sampling_seed": 1}});
    let route = |path, body, required| Route { path, body, required };
    vec![
        route("/v1/chat/completions", with(openai.clone(), chat), &["model", "messages"]),
        route("/v1/completions", with(openai, completion), &["model", "prompt"]),
        route("/v1/messages", anthropic, &["model", "max_tokens", "messages", "type"]),
        route("/generate", tgi.clone(), &["inputs"]),
        route("/generate_stream", tgi.clone(), &["inputs"]),
        route("/", with(tgi, json!({"stream": true})), &["inputs"]),
        route("/generate", sglang, &["text"]),
        route("/tokenize", json!({"prompt": "hi", "model": "mock", "return_token_strs": true}), &["prompt"]),
        route("/detokenize", json!({"tokens": [1], "model": "mock"}), &["tokens"]),
    ]
}

/// Every way to put `value` in the place of a field, with the field's name.
fn replaced(body: &Map<String, Value>, value: &Value) -> Vec<(String, Value, Value)> {
    let mut bodies = Vec::new();
    for (field, before) in body {
        let mut changed = body.clone();
        changed.insert(field.clone(), value.clone());
        bodies.push((field.clone(), before.clone(), Value::Object(changed)));
        // What users name themselves is no field.
        if let (Value::Object(inner), false) = (before, ["metadata", "logit_bias"].contains(&field.as_str()))
        {
            bodies.extend(replaced(inner, value).into_iter().map(|(name, before, inner)| {
                let mut changed = body.clone();
                changed.insert(field.clone(), inner);
                (name, before, Value::Object(changed))
            }));
        }
    }
    bodies
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Fields that are one string or several.
const EITHER: [&str; 5] = ["stop", "stop_sequences", "prompt", "text", "system"];

#[tokio::test]
async fn a_field_of_another_type_is_refused_by_name() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for Route { path, body, .. } in routes() {
        for wrong in [json!("x"), json!(1.5), json!(true), json!([{}]), json!({"a": 1})] {
            for (field, before, body) in replaced(body.as_object().unwrap(), &wrong) {
                let fits = kind(&before) == kind(&wrong)
                    || EITHER.contains(&field.as_str()) && wrong.is_string() && !before.is_number();
                if fits {
                    continue;
                }
                let response = server.post(path, &body).await;
                let status = response.status().as_u16();
                let text = response.text().await.unwrap();
                assert!([400, 422].contains(&status), "{path} {field} {wrong}: {status} {text}");
                assert!(text.contains(&field), "{path} {field} {wrong}: {text}");
            }
        }
    }
    assert!(server.script.asked.lock().is_empty(), "a refused body was dispatched");
}

#[tokio::test]
async fn null_is_absent_in_every_field() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    // Each of these needs the field before it.
    let needed = [("stream", "stream_options"), ("logprobs", "top_logprobs")];
    for Route { path, body, required } in routes() {
        for (field, _, mut body) in replaced(body.as_object().unwrap(), &Value::Null) {
            for (switch, dependent) in needed {
                if field == switch {
                    body.as_object_mut().unwrap().remove(dependent);
                }
            }
            let response = server.post(path, &body).await;
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            if required.contains(&field.as_str()) {
                assert!(
                    [400, 422].contains(&status) && text.contains(&field),
                    "{path} {field}: {status} {text}"
                );
            } else {
                assert_eq!(status, 200, "{path} {field}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_on_every_route() {
    let server = TestServer::start(Script::saying(says(&["ok"]))).await;
    for Route { path, body, .. } in routes() {
        let whole = body.to_string();
        for end in (0..whole.len()).step_by(7) {
            let post = server.client.post(format!("{}{path}", server.base));
            let post = post.header("content-type", "application/json").body(whole[..end].to_owned());
            let status = post.send().await.unwrap().status().as_u16();
            assert!([400, 422].contains(&status), "{path} cut at {end}: {status}");
        }
    }
    assert!(server.script.asked.lock().is_empty());
}
