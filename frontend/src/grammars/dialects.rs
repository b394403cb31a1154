//! The ways to say it.

use baton_protocol::GrammarKind;
use serde_json::json;

use super::{Asked, any_object, choice, only, schema, text};
use crate::{Config, error::ApiError, fields::Fields};

/// OpenAI's `response_format`, or what vLLM has beside it.
///
/// # Errors
/// When one is none or beyond a limit, or there are two.
pub fn of_openai(body: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    only([response_format(body, config)?, guided(body, config)?])
}

fn response_format(body: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    let Some(format) = body.take("response_format") else { return Ok(None) };
    let mut format = Fields::of_value(format, "response_format".to_owned())?;
    let asked = match format.require("type")?.as_str() {
        Some("text") => None,
        Some("json_object") => Some(any_object("response_format", config)?),
        Some("json_schema") => {
            let mut named = Fields::of_value(format.require("json_schema")?, format.name("json_schema"))?;
            if !named.require("name")?.is_string() {
                return Err(named.invalid("name", "must be a string"));
            }
            named.string("description")?;
            // It is always kept to.
            named.boolean("strict")?;
            let asked = schema(named.require("schema")?, "response_format.json_schema.schema", config)?;
            named.finish()?;
            Some(asked)
        }
        _ => return Err(format.invalid("type", "must be text, json_object or json_schema")),
    };
    format.finish()?;
    Ok(asked)
}

/// OpenAI's `text.format`, of Responses.
///
/// # Errors
/// When it is none, or beyond a limit.
pub fn of_responses(text: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    let Some(format) = text.take("format") else { return Ok(None) };
    let mut format = Fields::of_value(format, text.name("format"))?;
    let asked = match format.require("type")?.as_str() {
        Some("text") => None,
        Some("json_object") => Some(any_object("text.format", config)?),
        Some("json_schema") => {
            if !format.require("name")?.is_string() {
                return Err(format.invalid("name", "must be a string"));
            }
            format.string("description")?;
            // It is always kept to.
            format.boolean("strict")?;
            Some(schema(format.require("schema")?, "text.format.schema", config)?)
        }
        _ => return Err(format.invalid("type", "must be text, json_object or json_schema")),
    };
    format.finish()?;
    Ok(asked)
}

/// vLLM's `guided_*`, and what they are called since: `structured_outputs`.
fn guided(body: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    body.only("guided_decoding_backend", &[json!("auto"), json!("guidance")])?;
    let mut newer = body.object("structured_outputs")?;
    let regex = |value, param| text(GrammarKind::Regex, value, param, config);
    let lark = |value, param| text(GrammarKind::Lark, value, param, config);
    let asked = [
        body.take("guided_json").map(|value| schema(value, "guided_json", config)),
        body.take("guided_regex").map(|value| regex(value, "guided_regex")),
        body.take("guided_choice").map(|value| choice(value, "guided_choice", config)),
        body.take("guided_grammar").map(|value| lark(value, "guided_grammar")),
        newer.take("json").map(|value| schema(value, "structured_outputs.json", config)),
        newer.take("regex").map(|value| regex(value, "structured_outputs.regex")),
        newer.take("choice").map(|value| choice(value, "structured_outputs.choice", config)),
        newer.take("grammar").map(|value| lark(value, "structured_outputs.grammar")),
        newer.boolean("json_object")?.then(|| any_object("structured_outputs.json_object", config)),
    ];
    newer.finish()?;
    only(asked.into_iter().map(Option::transpose).collect::<Result<Vec<_>, _>>()?)
}

/// SGLang's, within `sampling_params`.
///
/// # Errors
/// As [`of_openai`].
pub fn of_sglang(asked: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    let text = |kind, value, param| text(kind, value, param, config);
    let found = [
        asked.take("json_schema").map(|value| schema(value, "sampling_params.json_schema", config)),
        asked.take("regex").map(|value| text(GrammarKind::Regex, value, "sampling_params.regex")),
        asked.take("ebnf").map(|value| text(GrammarKind::Lark, value, "sampling_params.ebnf")),
    ];
    only(found.into_iter().map(Option::transpose).collect::<Result<Vec<_>, _>>()?)
}

/// TGI's `grammar`, within `parameters`.
///
/// # Errors
/// When it is none, or beyond a limit.
pub fn of_tgi(asked: &mut Fields, config: &Config) -> Result<Option<Asked>, ApiError> {
    let Some(grammar) = asked.take("grammar") else { return Ok(None) };
    let mut grammar = Fields::of_value(grammar, asked.name("grammar"))?;
    let param = "parameters.grammar.value";
    let kind = grammar.require("type")?;
    let value = grammar.require("value")?;
    grammar.finish()?;
    let asked = match kind.as_str() {
        Some("json") => schema(value, param, config)?,
        Some("regex") => text(GrammarKind::Regex, value, param, config)?,
        Some("json_schema") => {
            let mut named = Fields::of_value(value, param.to_owned())?;
            named.string("name")?;
            let asked = schema(named.require("schema")?, "parameters.grammar.value.schema", config)?;
            named.finish()?;
            asked
        }
        _ => return Err(ApiError::invalid("parameters.grammar.type", "must be json, json_schema or regex")),
    };
    Ok(Some(asked))
}
