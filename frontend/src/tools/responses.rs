//! Tools as OpenAI's Responses have them: without an object around the function.

use serde_json::Value;

use super::{
    Tool, Tools, checked,
    openai::{chosen, name, read_function},
};
use crate::{Config, error::ApiError, fields::Fields};

/// Takes `tools`, `tool_choice` and `parallel_tool_calls` out of a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(body: &mut Fields, config: &Config) -> Result<Option<Tools>, ApiError> {
    let tools = body.array("tools")?.into_iter().enumerate().map(tool).collect::<Result<Vec<_>, _>>()?;
    let choice = chosen(body, !tools.is_empty(), |mut named| {
        let name = name(&mut named)?;
        named.finish()?;
        Ok(name)
    })?;
    let parallel = body.boolean_or("parallel_tool_calls", true)?;
    checked(tools, choice, parallel, config)
}

fn tool((index, tool): (usize, Value)) -> Result<Tool, ApiError> {
    let mut tool = Fields::of_value(tool, format!("tools[{index}]"))?;
    // Others run at OpenAI.
    if tool.require("type")? != "function" {
        return Err(ApiError::Unsupported { param: tool.name("type") });
    }
    read_function(tool)
}
