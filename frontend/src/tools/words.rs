//! Tools told in words, to a model whose template knows none.

use serde_json::{Value, json};

use super::Tools;

/// The messages with tools as a system message, calls as what the assistant said, and results
/// as what it was told.
pub fn in_words(messages: &Value, tools: Option<&Tools>) -> Value {
    let mut told: Vec<Value> = messages.as_array().into_iter().flatten().map(message).collect();
    let Some(tools) = tools else { return Value::Array(told) };
    let list: Vec<String> = tools.tools.iter().map(|tool| tool.to_json()["function"].to_string()).collect();
    let words = format!(
        "You can call these functions:\n{}\nTo call one, answer with nothing but \
         {{\"name\": <its name>, \"arguments\": <an object that fits its parameters>}}.",
        list.join("\n")
    );
    match told.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => {
            let before = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{before}\n\n{words}"));
        }
        None => told.insert(0, json!({ "role": "system", "content": words })),
    }
    Value::Array(told)
}

fn message(message: &Value) -> Value {
    let content = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        let name = message["name"].as_str().unwrap_or("the function");
        return json!({ "role": "user", "content": format!("Result of {name}: {content}") });
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let calls = calls.iter().map(|call| {
        let function = &call["function"];
        json!({ "name": function["name"], "arguments": function["arguments"] }).to_string()
    });
    let said = (!content.is_empty()).then(|| content.to_owned()).into_iter().chain(calls);
    json!({ "role": message["role"], "content": said.collect::<Vec<_>>().join("\n") })
}
