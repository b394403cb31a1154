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
    let function = Fields::of_value(tool.require("function")?, tool.name("function"))?;
    tool.finish()?;
    read_function(function)
}

/// The function that a tool is.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read_function(mut function: Fields) -> Result<Tool, ApiError> {
    let name = name(&mut function)?;
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
    let Some(arguments) = arguments(&function.require("arguments")?) else {
        return Err(function.invalid("arguments", "must be an object, written out as JSON"));
    };
    function.finish()?;
    call.finish()?;
    Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
}

/// Arguments of a call, written out, as an object.
pub fn arguments(text: &Value) -> Option<Value> {
    match text.as_str()?.trim() {
        "" => Some(json!({})),
        text => serde_json::from_str(text).ok().filter(Value::is_object),
    }
}

fn choice(body: &mut Fields, has_tools: bool) -> Result<Choice, ApiError> {
    chosen(body, has_tools, |mut named| {
        let mut function = Fields::of_value(named.require("function")?, named.name("function"))?;
        let name = name(&mut function)?;
        function.finish()?;
        named.finish()?;
        Ok(name)
    })
}

/// Takes `tool_choice` out of a body; `only` reads the name out of an object that has one.
///
/// # Errors
/// When it is no choice.
pub fn chosen(
    body: &mut Fields,
    has_tools: bool,
    only: fn(Fields) -> Result<String, ApiError>,
) -> Result<Choice, ApiError> {
    let wrong = "must be none, auto, required or a function by name";
    match body.take("tool_choice") {
        None => Ok(if has_tools { Choice::Auto } else { Choice::None }),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" => Ok(Choice::Any),
            _ => Err(body.invalid("tool_choice", wrong)),
        },
        Some(named @ Value::Object(_)) => {
            let mut named = Fields::of_value(named, "tool_choice".to_owned())?;
            if named.require("type")? != "function" {
                return Err(ApiError::Unsupported { param: named.name("type") });
            }
            only(named).map(Choice::Only)
        }
        Some(_) => Err(body.invalid("tool_choice", wrong)),
    }
}

/// The name in it.
///
/// # Errors
/// When there is none.
pub fn name(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.require("name")? {
        Value::String(name) => Ok(name),
        _ => Err(fields.invalid("name", "must be a string")),
    }
}
