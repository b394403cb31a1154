//! Tools, calls and their results as Anthropic's clients give them.

use serde_json::{Value, json};

use super::{Choice, Tool, Tools, check_name, checked};
use crate::{Config, error::ApiError, fields::Fields};

/// What may stand at any block: asks for the prefix up to here to be cached.
type CacheControl = fn(&mut Fields) -> Result<(), ApiError>;

/// Takes `tools` and `tool_choice` out of a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(body: &mut Fields, config: &Config, cached: CacheControl) -> Result<Option<Tools>, ApiError> {
    let tools = body.array("tools")?.into_iter().enumerate();
    let tools = tools.map(|(index, value)| tool(index, value, cached)).collect::<Result<Vec<_>, _>>()?;
    let (choice, parallel) = choice(body, !tools.is_empty())?;
    checked(tools, choice, parallel, config)
}

fn tool(index: usize, tool: Value, cached: CacheControl) -> Result<Tool, ApiError> {
    let mut tool = Fields::of_value(tool, format!("tools[{index}]"))?;
    match tool.take("type") {
        None => {}
        Some(kind) if kind == "custom" => {}
        // Those that run at Anthropic.
        Some(_) => return Err(ApiError::Unsupported { param: tool.name("type") }),
    }
    let Value::String(name) = tool.require("name")? else {
        return Err(tool.invalid("name", "must be a string"));
    };
    check_name(&name, tool.name("name"))?;
    let description = tool.string("description")?;
    let parameters = tool.require("input_schema")?;
    if !parameters.is_object() {
        return Err(tool.invalid("input_schema", "must be an object"));
    }
    let strict = tool.boolean("strict")?.then(|| tool.name("strict"));
    cached(&mut tool)?;
    tool.finish()?;
    Ok(Tool { name, description, parameters, strict })
}

fn choice(body: &mut Fields, has_tools: bool) -> Result<(Choice, bool), ApiError> {
    let Some(choice) = body.take("tool_choice") else {
        return Ok((if has_tools { Choice::Auto } else { Choice::None }, true));
    };
    let mut choice = Fields::of_value(choice, "tool_choice".to_owned())?;
    let kind = choice.require("type")?;
    let parallel = !choice.boolean("disable_parallel_tool_use")?;
    let read = match kind.as_str() {
        Some("auto") => Choice::Auto,
        Some("none") => Choice::None,
        Some("any") => Choice::Any,
        Some("tool") => match choice.require("name")? {
            Value::String(name) => Choice::Only(name),
            _ => return Err(choice.invalid("name", "must be a string")),
        },
        _ => return Err(choice.invalid("type", "must be auto, any, tool or none")),
    };
    choice.finish()?;
    Ok((read, parallel))
}

/// The messages that blocks of one message become: results of tools first, then text with calls.
///
/// # Errors
/// The first block that is wrong or unsupported.
pub fn read_blocks(
    role: &str,
    content: Value,
    path: &str,
    read_text: impl Fn(Value, &str) -> Result<String, ApiError>,
) -> Result<Vec<Value>, ApiError> {
    let Value::Array(blocks) = content else {
        return Ok(vec![json!({ "role": role, "content": read_text(content, path)? })]);
    };
    if blocks.is_empty() {
        return Err(ApiError::invalid(path, "must be a string or a non-empty array of blocks"));
    }
    let (mut messages, mut calls, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in blocks.into_iter().enumerate() {
        let at = format!("{path}[{i}]");
        match (role, block.get("type").and_then(Value::as_str)) {
            ("assistant", Some("tool_use")) => calls.push(call(Fields::of_value(block, at)?)?),
            ("user", Some("tool_result")) => messages.push(result(Fields::of_value(block, at)?, &read_text)?),
            // What it thought is not told to a model again.
            ("assistant", Some("thinking" | "redacted_thinking")) => {}
            _ => texts.push(read_text(json!([block]), path).map_err(|error| moved(error, path, i))?),
        }
    }
    if texts.is_empty() && calls.is_empty() && !messages.is_empty() {
        return Ok(messages);
    }
    let mut message = json!({ "role": role, "content": texts.join("\n") });
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    messages.push(message);
    Ok(messages)
}

/// A block was read as the only one of its array.
fn moved(error: ApiError, path: &str, index: usize) -> ApiError {
    let rename = |param: String| param.replacen(&format!("{path}[0]"), &format!("{path}[{index}]"), 1);
    match error {
        ApiError::Missing { param } => ApiError::Missing { param: rename(param) },
        ApiError::Invalid { param, message } => ApiError::Invalid { param: rename(param), message },
        ApiError::Unsupported { param } => ApiError::Unsupported { param: rename(param) },
        other => other,
    }
}

fn call(mut block: Fields) -> Result<Value, ApiError> {
    let (id, name, input) = (block.require("id")?, block.require("name")?, block.require("input")?);
    if !id.is_string() || !name.is_string() {
        return Err(block.invalid("name", "must be a string"));
    }
    if !input.is_object() {
        return Err(block.invalid("input", "must be an object"));
    }
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": input } }))
}

fn result(
    mut block: Fields,
    read_text: impl Fn(Value, &str) -> Result<String, ApiError>,
) -> Result<Value, ApiError> {
    let id = block.require("tool_use_id")?;
    let is_error = block.boolean("is_error")?;
    let path = block.name("content");
    let text = match block.take("content") {
        None => String::new(),
        Some(Value::Array(blocks)) if blocks.is_empty() => String::new(),
        Some(content) => read_text(content, &path)?,
    };
    let text = if is_error { format!("Error: {text}") } else { text };
    Ok(json!({ "role": "tool", "tool_call_id": id, "content": text }))
}
