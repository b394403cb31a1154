//! What was said in a call, as items that can be listed.

use serde_json::{Value, json};

/// The items of an `input` that was read without an error, in their longest form. Those without an id
/// get one when they are listed.
pub fn items(input: Value) -> Vec<Value> {
    match input {
        Value::String(text) => vec![item(json!({ "role": "user", "content": text }))],
        Value::Array(items) => items.into_iter().map(item).collect(),
        _ => Vec::new(),
    }
}

/// Items of the call that this response answers.
pub fn listed(given: &[Value], response: &str) -> Vec<Value> {
    let call = response.trim_start_matches("resp_");
    let with_id = |(at, item): (usize, &Value)| {
        let mut item = item.clone();
        if item["id"].is_null() {
            let prefix = match item["type"].as_str() {
                Some("function_call") => "fc",
                Some("function_call_output") => "fco",
                Some("reasoning") => "rs",
                _ => "msg",
            };
            item["id"] = json!(format!("{prefix}_{call}_given_{at}"));
        }
        item
    };
    given.iter().enumerate().map(with_id).collect()
}

fn item(mut item: Value) -> Value {
    if item["type"].is_null() {
        item["type"] = json!("message");
    }
    if item["status"].is_null() {
        item["status"] = json!("completed");
    }
    if item["type"] == "reasoning" && item["summary"].is_null() {
        item["summary"] = json!([]);
    }
    if item["type"] == "message" && item["content"].is_string() {
        let text = item["content"].take();
        item["content"] = json!([match item["role"].as_str() {
            Some("assistant") => json!({ "type": "output_text", "text": text, "annotations": [] }),
            _ => json!({ "type": "input_text", "text": text }),
        }]);
    }
    item
}
