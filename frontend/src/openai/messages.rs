//! The messages of a chat.

use serde_json::{Map, Value, json};

use crate::{
    Config,
    ask::{Conversation, Ending},
    error::ApiError,
    fields::Fields,
    tools,
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
    let read = |(i, message)| read_message(Fields::of_value(message, format!("messages[{i}]"))?);
    let mut messages = messages.into_iter().enumerate().map(read).collect::<Result<Vec<_>, ApiError>>()?;
    tools::name_results(&mut messages, "messages")?;
    let tools = tools::read_openai(body, config)?;
    let bytes = tools::bytes(&messages, tools.as_ref());
    let messages = Value::Array(messages);
    let ending = read_ending(body, &messages)?;
    Ok(Conversation { messages, tools, bytes, ending, variables: read_variables(body)?, effort: None })
}

/// One message, as templates know it.
fn read_message(mut message: Fields) -> Result<Value, ApiError> {
    let role = match message.require("role")?.as_str() {
        // Newer clients say developer; templates know it as system.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some("function") => return Err(ApiError::Unsupported { param: message.name("role") }),
        _ => return Err(message.invalid("role", "must be system, developer, user, assistant or tool")),
    };
    let calls = if role == "assistant" { tools::read_calls(&mut message)? } else { Vec::new() };
    let path = message.name("content");
    let content = match message.take("content") {
        // Whoever calls may say nothing.
        None if !calls.is_empty() => String::new(),
        None => return Err(ApiError::Missing { param: path }),
        Some(content) => read_text(content, &path, |_| Ok(()))?,
    };
    let mut read = json!({ "role": role, "content": content });
    if !calls.is_empty() {
        read["tool_calls"] = Value::Array(calls);
    }
    if role == "tool" {
        read["tool_call_id"] = message.require("tool_call_id")?;
    }
    if role == "assistant" {
        message.only("annotations", &[json!([])])?;
        if let Some(thoughts) = read_thoughts(&mut message)? {
            read["reasoning_content"] = Value::String(thoughts);
        }
    }
    message.finish()?;
    Ok(read)
}

/// Thoughts of an earlier answer, which has them by two names.
fn read_thoughts(message: &mut Fields) -> Result<Option<String>, ApiError> {
    let (new, old) = (message.string("reasoning")?, message.string("reasoning_content")?);
    match (&new, &old) {
        (Some(new), Some(old)) if new != old => {
            Err(message.invalid("reasoning", "must say the same as `reasoning_content`"))
        }
        _ => Ok(new.or(old)),
    }
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
