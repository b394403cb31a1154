//! The body of a chat call.

use serde_json::{Map, Value, json};

use crate::{error::ApiError, fields::Fields, parameters::Parameters};

/// A chat call whose shape is right.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCall {
    pub parameters: Parameters,
    /// `[{"role": …, "content": …}]`, contents joined to one string each.
    pub messages: Value,
    /// Bytes of all contents.
    pub content_bytes: usize,
    pub logprobs: bool,
    pub top_logprobs: u32,
}

const MAX_MESSAGES: usize = 2048;
const MAX_TOP_LOGPROBS: u32 = 20;

// === impl ChatCall ===

impl ChatCall {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field that is missing, wrong or unsupported.
    pub fn read(object: Map<String, Value>, max_choices: u32) -> Result<Self, ApiError> {
        let mut body = Fields::of_body(object);
        let parameters = Parameters::read(&mut body, max_choices)?;
        let Value::Array(messages) = body.require("messages")? else {
            return Err(ApiError::invalid("messages", "must be an array"));
        };
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            return Err(ApiError::invalid("messages", format!("must have 1 to {MAX_MESSAGES} entries")));
        }
        let logprobs = body.boolean("logprobs")?;
        let top_logprobs = body.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
        if top_logprobs.is_some() && !logprobs {
            return Err(ApiError::invalid("top_logprobs", "needs `logprobs` to be true"));
        }
        body.only("response_format", &[json!({"type": "text"})])?;
        body.only("modalities", &[json!(["text"])])?;
        body.only("tool_choice", &[json!("none")])?;
        body.finish()?;
        let mut content_bytes = 0;
        let messages = messages.into_iter().enumerate().map(|(i, message)| {
            let (role, content) = read_message(message, i)?;
            content_bytes += content.len();
            Ok(json!({ "role": role, "content": content }))
        });
        Ok(Self {
            messages: messages.collect::<Result<_, ApiError>>()?,
            parameters,
            content_bytes,
            logprobs,
            top_logprobs: top_logprobs.unwrap_or(0),
        })
    }
}

/// Role and content of one message.
fn read_message(message: Value, index: usize) -> Result<(&'static str, String), ApiError> {
    let mut message = Fields::of_value(message, format!("messages[{index}]"))?;
    let role = match message.require("role")?.as_str() {
        // Newer clients say developer; templates know it as system.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => return Err(ApiError::Unsupported { param: message.name("role") }),
        _ => return Err(message.invalid("role", "must be system, developer, user or assistant")),
    };
    let content = message.require("content")?;
    let content = read_content(content, message.name("content"))?;
    message.finish()?;
    Ok((role, content))
}

/// A string, or text parts, which are joined by line feeds.
fn read_content(content: Value, path: String) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => return Err(ApiError::invalid(path, "must be a string or a non-empty array of parts")),
    };
    let texts = parts.into_iter().enumerate().map(|(i, part)| {
        let mut part = Fields::of_value(part, format!("{path}[{i}]"))?;
        match part.require("type")?.as_str() {
            Some("text") => {}
            Some(_) => return Err(ApiError::Unsupported { param: part.name("type") }),
            None => return Err(part.invalid("type", "must be a string")),
        }
        let Value::String(text) = part.require("text")? else {
            return Err(part.invalid("text", "must be a string"));
        };
        part.finish()?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
