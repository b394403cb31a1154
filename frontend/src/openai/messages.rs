//! The messages of a chat.

use serde_json::{Map, Value, json};

use crate::{
    Config,
    ask::{Conversation, Ending},
    error::ApiError,
    fields::Fields,
};

/// Takes `messages` and what says how they become a prompt out of a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read_conversation(body: &mut Fields, config: &Config) -> Result<Conversation, ApiError> {
    let Value::Array(messages) = body.require("messages")? else {
        return Err(ApiError::invalid("messages", "must be an array"));
    };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "must not be empty"));
    }
    body.check_entries("messages", messages.len(), ("max_messages", config.max_messages))?;
    let mut bytes = 0;
    let messages = messages.into_iter().enumerate().map(|(i, message)| {
        let (role, content) = read_message(message, i)?;
        bytes += content.len();
        Ok(json!({ "role": role, "content": content }))
    });
    let messages = messages.collect::<Result<_, ApiError>>()?;
    let ending = read_ending(body, &messages)?;
    Ok(Conversation { messages, bytes, ending, variables: read_variables(body)?, effort: None })
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
    let content = read_text(content, &message.name("content"), |_| Ok(()))?;
    message.finish()?;
    Ok((role, content))
}

/// A string, or text parts, which are joined by line feeds; `more` takes what a part may also hold.
///
/// # Errors
/// The first part that is no text.
pub fn read_text(
    content: Value,
    path: &str,
    more: fn(&mut Fields) -> Result<(), ApiError>,
) -> Result<String, ApiError> {
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
        more(&mut part)?;
        part.finish()?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// vLLM's two switches, which exclude each other.
fn read_ending(body: &mut Fields, messages: &Value) -> Result<Ending, ApiError> {
    let continues = body.boolean("continue_final_message")?;
    let prompts = body.boolean_or("add_generation_prompt", !continues)?;
    match (prompts, continues) {
        (true, true) => {
            Err(body.invalid("continue_final_message", "needs `add_generation_prompt` to be false"))
        }
        (true, false) => Ok(Ending::Answer),
        (false, false) => Ok(Ending::Message),
        (false, true) => {
            let last = messages.as_array().and_then(|all| all.last()).map(|last| &last["role"]);
            match last.and_then(Value::as_str) {
                Some("assistant") => Ok(Ending::Within),
                _ => Err(body.invalid("continue_final_message", "needs a last message of the assistant")),
            }
        }
    }
}

/// Variables for the template. Those that the calls name otherwise are not among them.
fn read_variables(body: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let variables = match body.take("chat_template_kwargs") {
        None => return Ok(Map::new()),
        Some(Value::Object(variables)) => variables,
        Some(_) => return Err(body.invalid("chat_template_kwargs", "must be an object")),
    };
    match variables
        .keys()
        .find(|name| ["tools", "documents", "add_generation_prompt"].contains(&name.as_str()))
    {
        Some(name) => Err(ApiError::Unsupported { param: format!("chat_template_kwargs.{name}") }),
        None => Ok(variables),
    }
}
