//! The body of a completions call.

use serde_json::{Map, Value, json};

use crate::{
    Config,
    error::ApiError,
    fields::Fields,
    parameters::{Parameters, token_ids},
};

/// A completions call whose shape is right.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionsCall {
    pub parameters: Parameters,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// How many alternatives of each token; none: no log-probabilities at all.
    pub logprobs: Option<u32>,
}

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text to tokenize.
    Text(String),
    /// Tokens, not yet checked against a vocabulary.
    Tokens(Vec<u32>),
}

const MAX_LOGPROBS: u32 = 5;

// === impl CompletionsCall ===

impl CompletionsCall {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field that is missing, wrong or unsupported.
    pub fn read(object: Map<String, Value>, config: &Config) -> Result<Self, ApiError> {
        let mut body = Fields::of_body(object);
        let parameters = Parameters::read(&mut body, config.max_choices)?;
        let prompts = read_prompts(body.require("prompt")?)?;
        if prompts.len() > config.max_prompts {
            return Err(ApiError::invalid(
                "prompt",
                format!("must have at most {} prompts", config.max_prompts),
            ));
        }
        let logprobs = body.integer("logprobs", 0..=MAX_LOGPROBS)?;
        body.only("echo", &[json!(false)])?;
        body.only("best_of", &[json!(parameters.choices)])?;
        body.finish()?;
        Ok(Self { parameters, prompts, logprobs })
    }
}

/// A string, strings, tokens, or arrays of tokens.
fn read_prompts(prompt: Value) -> Result<Vec<Prompt>, ApiError> {
    let items = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(ApiError::invalid("prompt", "must be a string or a non-empty array")),
    };
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(token_ids(&items, "prompt")?)]);
    }
    let prompts = items.into_iter().enumerate().map(|(i, item)| match item {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => Ok(Prompt::Tokens(token_ids(&ids, &format!("prompt[{i}]"))?)),
        _ => Err(ApiError::invalid(format!("prompt[{i}]"), "must be a string or an array of token ids")),
    });
    prompts.collect()
}
