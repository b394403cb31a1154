//! Tools as OpenAI's clients give them.

use serde_json::{Value, json};

use super::{Choice, Tool, Tools, check_name, checked, no_parameters};
use crate::{Config, error::ApiError, fields::Fields};

/// Takes `tools`, `tool_choice` and `parallel_tool_calls` out of a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(body: &mut Fields, config: &Config) -> Result<Option<Tools>, ApiError> {
    let tools = body.array("tools")?.into_iter().enumerate().map(tool).collect::<Result<Vec<_>, _>>()?;
    let choice = choice(body, !tools.is_empty())?;
    let parallel = body.boolean_or("parallel_tool_calls", true)?;
    checked(tools, choice, parallel, config)
}

fn tool((index, tool): (usize, Value)) -> Result<Tool, ApiError> {
    let mut tool = Fields::of_value(tool, format!("tools[{index}]"))?;
    if tool.require("type")? != "function" {
        return Err(ApiError::Unsupported { param: tool.name("type") });
    }
    let mut function = Fields::of_value(tool.require("function")?, tool.name("function"))?;
    tool.finish()?;
    let Value::String(name) = function.require("name")? else {
        return Err(function.invalid("name", "must be a string"));
    };
    check_name(&name, function.name("name"))?;
    let description = function.string("description")?;
    let strict = function.boolean("strict")?.then(|| function.name("strict"));
    let parameters = match function.take("parameters") {
        None => no_parameters(),
        Some(parameters @ Value::Object(_)) => parameters,
        Some(_) => return Err(function.invalid("parameters", "must be an object")),
    };
    function.finish()?;
    Ok(Tool { name, description, parameters, strict })
}

/// Takes `tool_calls` out of a message of the assistant; arguments become objects.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read_calls(message: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let path = message.name("tool_calls");
    let calls = message.array("tool_calls")?.into_iter().enumerate();
    calls.map(|(i, call)| read_call(Fields::of_value(call, format!("{path}[{i}]"))?)).collect()
}

fn read_call(mut call: Fields) -> Result<Value, ApiError> {
    let id = call.require("id")?;
    if !id.is_string() {
        return Err(call.invalid("id", "must be a string"));
    }
    if call.require("type")? != "function" {
        return Err(ApiError::Unsupported { param: call.name("type") });
    }
    // Streams number calls, and some clients send them back like this.
    call.integer("index", 0..=u32::MAX)?;
    let mut function = Fields::of_value(call.require("function")?, call.name("function"))?;
    let name = function.require("name")?;
    if !name.is_string() {
        return Err(function.invalid("name", "must be a string"));
    }
    let arguments = match function.require("arguments")? {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        _ => Value::Null,
    };
    if !arguments.is_object() {
        return Err(function.invalid("arguments", "must be an object, written out as JSON"));
    }
    function.finish()?;
    call.finish()?;
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
}

fn choice(body: &mut Fields, has_tools: bool) -> Result<Choice, ApiError> {
    let wrong = "must be none, auto, required or a function by name";
    match body.take("tool_choice") {
        None => Ok(if has_tools { Choice::Auto } else { Choice::None }),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" => Ok(Choice::Any),
            _ => Err(body.invalid("tool_choice", wrong)),
        },
        Some(Value::Object(named)) => {
            let mut named = Fields::of_value(Value::Object(named), "tool_choice".to_owned())?;
            if named.require("type")? != "function" {
                return Err(ApiError::Unsupported { param: named.name("type") });
            }
            let mut function = Fields::of_value(named.require("function")?, named.name("function"))?;
            let Value::String(name) = function.require("name")? else {
                return Err(function.invalid("name", "must be a string"));
            };
            function.finish()?;
            named.finish()?;
            Ok(Choice::Only(name))
        }
        Some(_) => Err(body.invalid("tool_choice", wrong)),
    }
}
