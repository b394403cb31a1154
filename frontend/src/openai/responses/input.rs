//! What is said to the model: a text, or items, as messages that templates know.

use serde_json::{Value, json};

use crate::{Config, error::ApiError, fields::Fields, tools};

/// Messages being made.
#[derive(Default)]
struct Messages {
    read: Vec<Value>,
    /// What was thought before the next thing that the model said.
    thoughts: Option<String>,
}

/// Reads `input`.
///
/// # Errors
/// The first item that is wrong or unsupported.
pub fn read(input: Value, config: &Config) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![json!({ "role": "user", "content": text })]),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(ApiError::invalid("input", "must be a string or a non-empty array")),
    };
    let limit = config.max_messages;
    if items.len() > limit {
        let message = format!("must have at most {limit} entries (frontend.max_messages)");
        return Err(ApiError::invalid("input", message));
    }
    let mut messages = Messages::default();
    for (i, item) in items.into_iter().enumerate() {
        messages.add(Fields::of_value(item, format!("input[{i}]"))?)?;
    }
    Ok(messages.read)
}

/// With instructions before them; what is said as the system at the beginning is one message.
pub fn told(instructions: Option<String>, messages: &[Value]) -> Vec<Value> {
    let systems = messages.iter().take_while(|message| message["role"] == "system").count();
    let (first, rest) = messages.split_at(systems);
    let said = first.iter().filter_map(|message| message["content"].as_str()).map(str::to_owned);
    let system: Vec<_> = instructions.into_iter().chain(said).filter(|text| !text.is_empty()).collect();
    let system = (!system.is_empty()).then(|| json!({ "role": "system", "content": system.join("\n\n") }));
    system.into_iter().chain(rest.iter().cloned()).collect()
}

// === impl Messages ===

impl Messages {
    fn add(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let kind = item.string("type")?;
        // Answers that are sent back have these.
        item.string("id")?;
        item.string("status")?;
        match kind.as_deref() {
            None | Some("message") => self.message(item),
            Some("function_call") => self.call(item),
            Some("function_call_output") => self.result(item),
            Some("reasoning") => self.reasoning(item),
            Some(_) => Err(ApiError::Unsupported { param: item.name("type") }),
        }
    }

    fn message(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let role = match item.require("role")?.as_str() {
            Some("system" | "developer") => "system",
            Some("user") => "user",
            Some("assistant") => "assistant",
            _ => return Err(item.invalid("role", "must be system, developer, user or assistant")),
        };
        let content = text(item.require("content")?, &item.name("content"))?;
        item.finish()?;
        let mut message = json!({ "role": role, "content": content });
        if role == "assistant"
            && let Some(thoughts) = self.thoughts.take()
        {
            message["reasoning_content"] = Value::String(thoughts);
        }
        self.read.push(message);
        Ok(())
    }

    /// Calls one after another, and behind a text, are one message.
    fn call(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let (id, name) = (item.require("call_id")?, item.require("name")?);
        if !id.is_string() || !name.is_string() {
            return Err(item.invalid("call_id", "must be a string, as the name must"));
        }
        let arguments = item.require("arguments")?;
        let arguments = tools::arguments(&arguments)
            .ok_or_else(|| item.invalid("arguments", "must be an object, written out as JSON"))?;
        item.finish()?;
        let call = json!({
            "id": id,
            "type": "function",
            "function": { "name": name, "arguments": arguments },
        });
        let is_said = self.read.last().is_some_and(|last| last["role"] == "assistant");
        if !is_said {
            let mut message = json!({ "role": "assistant", "content": "" });
            if let Some(thoughts) = self.thoughts.take() {
                message["reasoning_content"] = Value::String(thoughts);
            }
            self.read.push(message);
        }
        if let Some(last) = self.read.last_mut() {
            match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => last["tool_calls"] = json!([call]),
            }
        }
        Ok(())
    }

    fn result(&mut self, mut item: Fields) -> Result<(), ApiError> {
        let id = item.require("call_id")?;
        let content = text(item.require("output")?, &item.name("output"))?;
        item.finish()?;
        self.read.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
        Ok(())
    }

    fn reasoning(&mut self, mut item: Fields) -> Result<(), ApiError> {
        item.only("summary", &[json!([])])?;
        let path = item.name("content");
        if let Some(content) = item.take("content").filter(|content| *content != json!([])) {
            self.thoughts = Some(text(content, &path)?);
        }
        item.finish()
    }
}

/// A string, or parts of text, which are joined by line feeds.
fn text(content: Value, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => return Err(ApiError::invalid(path, "must be a string or a non-empty array of parts")),
    };
    let texts = parts.into_iter().enumerate().map(|(i, part)| {
        let mut part = Fields::of_value(part, format!("{path}[{i}]"))?;
        match part.require("type")?.as_str() {
            Some("input_text" | "output_text" | "reasoning_text") => {}
            Some(_) => return Err(ApiError::Unsupported { param: part.name("type") }),
            None => return Err(part.invalid("type", "must be a string")),
        }
        let Value::String(text) = part.require("text")? else {
            return Err(part.invalid("text", "must be a string"));
        };
        // What answers have beside their text.
        part.only("annotations", &[json!([])])?;
        part.array("logprobs")?;
        part.finish()?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
