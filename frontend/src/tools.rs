//! Tools that a model may call.
//!
//! - [`openai`], [`responses`], [`anthropic`]: how they are given
//! - [`words`]: told to a model whose template knows none
//! - [`fit`]: grammars that calls have to fit

mod anthropic;
mod fit;
mod openai;
mod responses;
mod words;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use anthropic::{read as read_anthropic, read_blocks};
pub use fit::grammar;
pub use openai::{arguments, read as read_openai, read_calls};
pub use responses::read as read_responses;
pub use words::in_words;

use crate::{Config, error::ApiError};

/// The tools of a call, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    pub tools: Vec<Tool>,
    pub choice: Choice,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
}

/// One tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments: an object.
    pub parameters: Value,
    /// Calls have to fit the schema even where none is demanded; where the tool says so.
    pub strict: Option<String>,
}

/// What is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// As the model likes.
    Auto,
    /// Nothing.
    None,
    /// Something.
    Any,
    /// This one.
    Only(String),
}

// === impl Tools ===

impl Tools {
    /// As templates know them.
    pub fn to_json(&self) -> Value {
        self.tools.iter().map(Tool::to_json).collect()
    }

    /// What can be called.
    pub fn names(&self) -> Arc<[String]> {
        self.callable().map(|tool| tool.name.clone()).collect()
    }

    /// Whether an answer is calls and nothing else.
    pub fn are_demanded(&self) -> bool {
        matches!(self.choice, Choice::Any | Choice::Only(_))
    }

    fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools.iter().filter(|tool| match &self.choice {
            Choice::Auto | Choice::Any => true,
            Choice::None => false,
            Choice::Only(name) => tool.name == *name,
        })
    }
}

// === impl Tool ===

impl Tool {
    fn to_json(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        function["parameters"] = self.parameters.clone();
        json!({ "type": "function", "function": function })
    }
}

/// Tells results of tools whose they are, as some templates want to know.
///
/// # Errors
/// When one answers no call before it; `param` holds them.
pub fn name_results(messages: &mut [Value], param: &str) -> Result<(), ApiError> {
    for index in 0..messages.len() {
        let (before, rest) = messages.split_at_mut(index);
        let message = &mut rest[0];
        if message["role"] != "tool" {
            continue;
        }
        let mut calls = before.iter().rev().filter_map(|message| message["tool_calls"].as_array()).flatten();
        let call = calls.find(|call| call["id"].is_string() && call["id"] == message["tool_call_id"]);
        let Some(call) = call else {
            return Err(ApiError::invalid(param, "a result of a tool must answer a call before it"));
        };
        message["name"] = call["function"]["name"].clone();
    }
    Ok(())
}

/// Bytes of messages and tools, as far as they are text of the caller.
pub fn bytes(messages: &[Value], tools: Option<&Tools>) -> usize {
    let calls = |message: &Value| message.get("tool_calls").map_or(0, |calls| calls.to_string().len());
    let of = |message: &Value| message["content"].as_str().map_or(0, str::len) + calls(message);
    messages.iter().map(of).sum::<usize>() + tools.map_or(0, |tools| tools.to_json().to_string().len())
}

/// A name that every dialect takes.
fn check_name(name: &str, param: String) -> Result<(), ApiError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(is_fine) {
        return Ok(());
    }
    Err(ApiError::invalid(param, "must be 1 to 64 letters, digits, `_` and `-`"))
}

/// No two tools of a name, not too many, and the one that is chosen is there.
fn checked(
    tools: Vec<Tool>,
    choice: Choice,
    parallel: bool,
    config: &Config,
) -> Result<Option<Tools>, ApiError> {
    let limit = config.max_tools;
    if tools.len() > limit {
        return Err(ApiError::invalid(
            "tools",
            format!("must have at most {limit} entries (frontend.max_tools)"),
        ));
    }
    for (i, tool) in tools.iter().enumerate() {
        if tools[..i].iter().any(|other| other.name == tool.name) {
            return Err(ApiError::invalid("tools", format!("has `{}` twice", tool.name)));
        }
    }
    match &choice {
        Choice::Only(name) if !tools.iter().any(|tool| tool.name == *name) => {
            return Err(ApiError::invalid("tool_choice", "names no tool that is there"));
        }
        Choice::Any if tools.is_empty() => {
            return Err(ApiError::invalid("tool_choice", "needs `tools`"));
        }
        _ => {}
    }
    Ok((!tools.is_empty()).then_some(Tools { tools, choice, parallel }))
}

/// Of a tool that takes none.
fn no_parameters() -> Value {
    json!({ "type": "object", "properties": Map::new() })
}
