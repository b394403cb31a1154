//! What the API can do, a row each.

use reqwest::{
    Client,
    multipart::{Form, Part},
};
use serde_json::{Map, Value, json};

use crate::sandbox::{PATIENCE, eventually};

/// One row: a body, and where it goes.
pub struct Feature {
    pub name: &'static str,
    path: &'static str,
    body: Value,
}

const MODEL: &str = "smollm2-135m";

/// Fields that may differ: ids, times, and what depends on the path.
const OWN: [&str; 13] = [
    "id",
    "item_id",
    "call_id",
    "custom_id",
    "request_id",
    "previous_response_id",
    "created",
    "created_at",
    "completed_at",
    "baton_bill",
    "cached_tokens",
    // Anthropic's count without those that were cached.
    "input_tokens",
    "cache_read_input_tokens",
];

/// All rows.
pub fn features() -> Vec<Feature> {
    let rows = [openai(), extras(), others()].concat();
    rows.into_iter().map(|(name, path, body)| Feature { name, path, body }).collect()
}

type Row = (&'static str, &'static str, Value);

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn with(body: Value, more: Value) -> Value {
    let (Value::Object(mut body), Value::Object(more)) = (body, more) else { panic!("two objects") };
    body.extend(more);
    Value::Object(body)
}

fn chat(more: Value) -> Value {
    let question = json!([{"role": "user", "content": "Tell me of a long walk through a town by the sea."}]);
    with(json!({"model": MODEL, "messages": question, "temperature": 0, "max_tokens": 40}), more)
}

fn complete(more: Value) -> Value {
    let prompt = "It was a bright cold day in April, and the clocks were striking";
    with(json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 40}), more)
}

fn respond(more: Value) -> Value {
    let input = "Tell me of a long walk through a town by the sea.";
    with(json!({"model": MODEL, "input": input, "temperature": 0, "max_output_tokens": 40}), more)
}

fn message(more: Value) -> Value {
    let question = json!([{"role": "user", "content": "Tell me of a long walk through a town by the sea."}]);
    with(json!({"model": MODEL, "messages": question, "temperature": 0, "max_tokens": 40}), more)
}

fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    })
}

fn tool() -> Value {
    json!({"name": "note", "parameters": schema()})
}

fn openai() -> Vec<Row> {
    let tools = json!([{"type": "function", "function": tool()}]);
    let called =
        json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 100});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema()}});
    let flat = json!([{"type": "function", "name": "note", "parameters": schema()}]);
    let flatly = json!({"tools": flat, "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 100});
    let text = json!({"format": {"type": "json_schema", "name": "n", "schema": schema()}});
    let included = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2, "stream": true});
    vec![
        ("chat", CHAT, chat(json!({}))),
        ("chat, streamed", CHAT, chat(json!({"stream": true, "stream_options": {"include_usage": true}}))),
        ("choices", CHAT, chat(json!({"n": 3, "temperature": 1, "seed": 3}))),
        ("log-probabilities of a prompt", CHAT, chat(json!({"prompt_logprobs": 3}))),
        (
            "log-probabilities of echoes",
            COMPLETIONS,
            complete(json!({"echo": true, "logprobs": 2, "stream": true})),
        ),
        ("log-probabilities", CHAT, chat(json!({"logprobs": true, "top_logprobs": 3, "stream": true}))),
        ("stop strings", CHAT, chat(json!({"stop": [" the", "."], "stream": true}))),
        ("seeded drawing", CHAT, chat(json!({"temperature": 1.2, "top_p": 0.9, "seed": 11, "stream": true}))),
        ("penalties", CHAT, chat(json!({"presence_penalty": 1, "frequency_penalty": 1}))),
        ("biases", CHAT, chat(json!({"logit_bias": {"30": 5, "31": -100}}))),
        ("a schema", CHAT, chat(json!({"response_format": format, "max_tokens": 100, "stream": true}))),
        (
            "any JSON object",
            CHAT,
            chat(json!({"response_format": {"type": "json_object"}, "max_tokens": 60})),
        ),
        ("tools", CHAT, chat(called.clone())),
        ("tools, streamed", CHAT, chat(with(called, json!({"stream": true})))),
        ("completions", COMPLETIONS, complete(json!({"echo": true, "stream": true}))),
        (
            "embeddings",
            "/v1/embeddings",
            json!({"model": MODEL, "input": ["A long walk through a town by the sea.", "Bread and salt."]}),
        ),
        ("prompts and tokens", COMPLETIONS, complete(json!({"prompt": [[504, 253, 1345], [28, 260]]}))),
        (
            "the best",
            COMPLETIONS,
            complete(json!({"best_of": 3, "temperature": 1, "seed": 4, "logprobs": 1})),
        ),
        ("responses", RESPONSES, respond(json!({"instructions": "Be brief."}))),
        ("responses, streamed", RESPONSES, respond(included)),
        ("responses with tools", RESPONSES, respond(with(flatly, json!({"stream": true})))),
        ("responses with a schema", RESPONSES, respond(json!({"text": text, "max_output_tokens": 100}))),
    ]
}

fn extras() -> Vec<Row> {
    let regex = json!({"structured_outputs": {"regex": "[a-z]{3,8}( [a-z]{3,8}){4}"}});
    let lark = "start: WORD (\", \" WORD){2,4} \".\"\nWORD: /[a-z]{2,9}/\n";
    vec![
        ("a regex", COMPLETIONS, complete(regex)),
        ("a grammar", COMPLETIONS, complete(json!({"guided_grammar": lark}))),
        ("a choice", COMPLETIONS, complete(json!({"guided_choice": ["thirteen", "twelve times", "one"]}))),
        ("ends ignored", COMPLETIONS, complete(json!({"ignore_eos": true, "stream": true}))),
        ("a minimum of tokens", COMPLETIONS, complete(json!({"min_tokens": 20, "stop_token_ids": [28, 30]}))),
        (
            "vLLM's sampling",
            COMPLETIONS,
            complete(
                json!({"top_k": 20, "min_p": 0.02, "repetition_penalty": 1.1, "temperature": 1, "seed": 8}),
            ),
        ),
        ("truncated prompts", COMPLETIONS, complete(json!({"truncate_prompt_tokens": 5}))),
        (
            "control tokens spelled",
            CHAT,
            chat(json!({"skip_special_tokens": false, "include_stop_str_in_output": true, "stop": ["."]})),
        ),
    ]
}

fn others() -> Vec<Row> {
    let named = json!([{"name": "note", "input_schema": schema()}]);
    let tools = json!({"tools": named, "tool_choice": {"type": "any"}, "max_tokens": 100});
    let walk = "Tell me of a long walk through a town by the sea.";
    let tgi = json!({"inputs": walk, "parameters": {"max_new_tokens": 40, "details": true}});
    let drawn = json!({"inputs": walk, "parameters": {"max_new_tokens": 40, "do_sample": true, "seed": 6, "top_n_tokens": 2}});
    let params = json!({"temperature": 0, "max_new_tokens": 40});
    let sglang =
        json!({"text": walk, "sampling_params": params, "return_logprob": true, "top_logprobs_num": 2});
    let input = json!({"return_logprob": true, "top_logprobs_num": 2, "logprob_start_len": 4});
    vec![
        ("SGLang, of prompts", "/generate", with(sglang.clone(), input)),
        ("Anthropic", MESSAGES, message(json!({"system": "Be brief.", "stop_sequences": [" the"]}))),
        ("Anthropic, streamed", MESSAGES, message(json!({"stream": true}))),
        ("Anthropic's tools", MESSAGES, message(with(tools, json!({"stream": true})))),
        ("TGI", "/generate", tgi),
        ("TGI, streamed", "/generate_stream", drawn),
        ("SGLang", "/generate", sglang.clone()),
        ("SGLang, streamed", "/generate", with(sglang, json!({"stream": true}))),
        ("a batch", "/v1/batches", chat(json!({}))),
    ]
}

// === impl Feature ===

impl Feature {
    /// Asks; returns what is the same on every path: the answer, or each event.
    pub async fn ask(&self, http: &Client, url: &str) -> Vec<Value> {
        let answered = async {
            if self.path == "/v1/batches" { self.batch(http, url).await } else { self.post(http, url).await }
        };
        let found = tokio::time::timeout(PATIENCE, answered).await;
        let mut found = found.unwrap_or_else(|_| panic!("{}: hung", self.name));
        found.iter_mut().for_each(forget_own);
        found
    }

    async fn post(&self, http: &Client, url: &str) -> Vec<Value> {
        let response = http.post(format!("{url}{}", self.path)).json(&self.body).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{}: {text}", self.name);
        if !text.contains("data:") {
            return vec![serde_json::from_str(&text).unwrap()];
        }
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data.trim()))).collect()
    }

    /// Three lines of the same.
    async fn batch(&self, http: &Client, url: &str) -> Vec<Value> {
        let line =
            |id| json!({"custom_id": id, "method": "POST", "url": CHAT, "body": self.body}).to_string();
        let lines = ["a", "b", "c"].map(line).join("\n");
        let form = Form::new().text("purpose", "batch").part("file", Part::text(lines).file_name("in"));
        let file: Value =
            http.post(format!("{url}/v1/files")).multipart(form).send().await.unwrap().json().await.unwrap();
        let body = json!({"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"});
        let begun: Value =
            http.post(format!("{url}/v1/batches")).json(&body).send().await.unwrap().json().await.unwrap();
        let get = async |path: String| http.get(format!("{url}{path}")).send().await.ok()?.text().await.ok();
        let path = format!("/v1/batches/{}", begun["id"].as_str().unwrap());
        let output = eventually("the batch", || async {
            let batch: Value = serde_json::from_str(&get(path.clone()).await?).ok()?;
            assert_eq!(batch["error_file_id"], Value::Null, "{batch}");
            batch["output_file_id"].as_str().map(str::to_owned)
        });
        let content = get(format!("/v1/files/{}/content", output.await)).await.unwrap();
        content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Takes out of an answer what is its own.
fn forget_own(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let kept = std::mem::take(fields).into_iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
            *fields = kept.collect::<Map<_, _>>();
            fields.values_mut().for_each(forget_own);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_own),
        _ => {}
    }
}
