//! Grammars that calls have to fit.

use std::sync::Arc;

use baton_model::grammar::on_one_line;
use baton_protocol::{Grammar, GrammarKind};
use serde_json::{Value, json};

use super::{Tool, Tools};
use crate::{
    Config,
    ask::Named,
    error::ApiError,
    grammars::{self, Asked},
    parts::CallForm,
};

/// Most calls of an answer that is nothing else.
const MAX_CALLS: u32 = 8;

/// What an answer has to be for its calls to fit, if they have to: none are demanded and none
/// of the tools is strict, then it may be anything.
///
/// # Errors
/// When a tool is strict and the model's form of calls cannot be held to that.
pub fn grammar(tools: &Tools, form: CallForm, config: &Config) -> Result<Option<Asked>, ApiError> {
    let strict = tools.callable().find_map(|tool| tool.strict.as_ref());
    let grammar = match (tools.are_demanded(), strict) {
        (true, _) => Grammar { kind: GrammarKind::Json, source: demanded(tools).to_string() },
        (false, None) => return Ok(None),
        (false, Some(param)) => {
            let source =
                where_it_calls(tools, form).ok_or_else(|| ApiError::Unsupported { param: param.clone() })?;
            Grammar { kind: GrammarKind::Lark, source }
        }
    };
    for tool in tools.callable() {
        grammars::check_depth(&tool.parameters, "tools", config)?;
    }
    grammars::check_bytes(&grammar.source, "tools", config)?;
    Ok(Some(Named { value: Arc::new(grammar), param: "tools" }))
}

/// Calls and nothing else: one that is named, one, or several.
fn demanded(tools: &Tools) -> Value {
    let mut call = one_of(tools, "arguments");
    let is_one = !tools.parallel || matches!(tools.choice, super::Choice::Only(_));
    if is_one {
        return call;
    }
    let definitions = call["$defs"].take();
    json!({ "type": "array", "minItems": 1, "maxItems": MAX_CALLS,
        "items": { "anyOf": call["anyOf"] }, "$defs": definitions })
}

/// Text or calls that fit, as a model writes them.
fn where_it_calls(tools: &Tools, form: CallForm) -> Option<String> {
    let call = |arguments| on_one_line(one_of(tools, arguments)).to_string();
    match form {
        CallForm::Hermes => Some(format!(
            "start: (open \"\\n\"? call \"\\n\"? \"</tool_call>\")* TEXT?\n\
             open[lazy]: /(.|\\n)*<tool_call>/\n\
             call: %json {}\n\
             TEXT: /(.|\\n)*/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\n",
            call("arguments")
        )),
        CallForm::Json | CallForm::Llama => Some(format!(
            "start: TEXT | call\nTEXT: /[^{{\\[\\s](.|\\n)*/\ncall: %json {}\n",
            call(if form == CallForm::Llama { "parameters" } else { "arguments" })
        )),
        CallForm::Mistral => None,
    }
}

/// A call of any of the tools, each tool's schema among the definitions.
fn one_of(tools: &Tools, arguments: &str) -> Value {
    let (mut calls, mut definitions) = (Vec::new(), serde_json::Map::new());
    for (index, Tool { name, parameters, .. }) in tools.callable().enumerate() {
        let key = format!("tool{index}");
        calls.push(json!({ "type": "object", "additionalProperties": false, "required": ["name", arguments],
            "properties": { "name": { "const": name }, arguments: { "$ref": format!("#/$defs/{key}") } } }));
        definitions.insert(key.clone(), moved(parameters, &format!("#/$defs/{key}")));
    }
    json!({ "anyOf": calls, "$defs": definitions })
}

/// A schema whose root is at `root` from now on.
fn moved(schema: &Value, root: &str) -> Value {
    match schema {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match value {
                Value::String(target) if name == "$ref" => match target.strip_prefix('#') {
                    Some(pointer) => (name.clone(), json!(format!("{root}{pointer}"))),
                    None => (name.clone(), value.clone()),
                },
                _ => (name.clone(), moved(value, root)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| moved(item, root)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
