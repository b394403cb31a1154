//! What an answer must be, as clients say it.
//!
//! - [`of_openai`]: OpenAI's `response_format`, and vLLM's fields beside it
//! - [`of_responses`]: OpenAI's `text.format`
//! - [`of_sglang`], [`of_tgi`]: within `sampling_params` and `parameters`

mod dialects;

use std::sync::Arc;

use baton_protocol::{Grammar, GrammarKind};
use serde_json::{Value, json};

pub use dialects::{of_openai, of_responses, of_sglang, of_tgi};

use crate::{Config, ask::Named, error::ApiError};

/// A grammar, and the field that holds it.
pub type Asked = Named<Arc<Grammar>>;

/// A JSON Schema, as an object or written out.
fn schema(value: Value, param: &'static str, config: &Config) -> Result<Asked, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(param, format!("is no JSON Schema: {error}")))?,
        value => value,
    };
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        return Err(ApiError::invalid(param, "must be a JSON Schema: an object"));
    }
    check_depth(&schema, param, config)?;
    grammar(GrammarKind::Json, schema.to_string(), param, config)
}

/// Any JSON object.
fn any_object(param: &'static str, config: &Config) -> Result<Asked, ApiError> {
    grammar(GrammarKind::Json, json!({ "type": "object" }).to_string(), param, config)
}

/// A regular expression or a Lark grammar.
fn text(kind: GrammarKind, value: Value, param: &'static str, config: &Config) -> Result<Asked, ApiError> {
    match value {
        Value::String(source) => grammar(kind, source, param, config),
        _ => Err(ApiError::invalid(param, "must be a string")),
    }
}

/// One of several texts.
fn choice(value: Value, param: &'static str, config: &Config) -> Result<Asked, ApiError> {
    let wrong = || ApiError::invalid(param, "must be a non-empty array of non-empty strings");
    let Value::Array(choices) = value else { return Err(wrong()) };
    let quoted = choices.iter().map(|choice| match choice {
        // Lark writes strings as JSON does.
        Value::String(text) if !text.is_empty() => Ok(choice.to_string()),
        _ => Err(wrong()),
    });
    let quoted = quoted.collect::<Result<Vec<_>, _>>()?;
    if quoted.is_empty() {
        return Err(wrong());
    }
    let source = format!("start: CHOICE\nCHOICE: {}\n", quoted.join(" | "));
    grammar(GrammarKind::Lark, source, param, config)
}

fn grammar(
    kind: GrammarKind,
    source: String,
    param: &'static str,
    config: &Config,
) -> Result<Asked, ApiError> {
    check_bytes(&source, param, config)?;
    Ok(Named { value: Arc::new(Grammar { kind, source }), param })
}

/// Refuses what is too long.
///
/// # Errors
/// With the limit's name.
pub fn check_bytes(source: &str, param: &str, config: &Config) -> Result<(), ApiError> {
    let limit = config.max_grammar_bytes;
    if source.len() <= limit {
        return Ok(());
    }
    let message = format!("must have at most {limit} bytes (frontend.max_grammar_bytes)");
    Err(ApiError::invalid(param, message))
}

/// Refuses a schema that is too deep.
///
/// # Errors
/// With the limit's name.
pub fn check_depth(schema: &Value, param: &str, config: &Config) -> Result<(), ApiError> {
    let limit = config.max_schema_depth;
    if !is_deeper(schema, limit) {
        return Ok(());
    }
    let message = format!("must be at most {limit} levels deep (frontend.max_schema_depth)");
    Err(ApiError::invalid(param, message))
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let within = |value| levels == 0 || is_deeper(value, levels - 1);
    match value {
        Value::Array(items) => items.iter().any(within),
        Value::Object(fields) => fields.values().any(within),
        _ => false,
    }
}

/// The only one of these that is there.
fn only(asked: impl IntoIterator<Item = Option<Asked>>) -> Result<Option<Asked>, ApiError> {
    let mut asked = asked.into_iter().flatten();
    let first = asked.next();
    match (&first, asked.next()) {
        (Some(first), Some(second)) => {
            Err(ApiError::invalid(second.param, format!("excludes `{}`", first.param)))
        }
        _ => Ok(first),
    }
}
