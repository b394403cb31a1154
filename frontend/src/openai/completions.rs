//! The body of a completions call.

use serde_json::{Map, Value};

use super::{
    completions_reply::CompletionsReply,
    parameters::{self, Streaming, token_ids},
};
use crate::{
    Config,
    ask::{Ask, Call, Content, Named, Prompt, Told, Truncate},
    error::ApiError,
    fields::Fields,
};

/// Reads a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    let model = Some(parameters::model(&mut body)?);
    let Streaming { stream, include_usage } = parameters::streaming(&mut body)?;
    let echo = body.boolean("echo")?;
    let mut shared = parameters::read(&mut body, config, echo)?;
    shared.stream = stream;
    let prompt_logprobs = parameters::told_whole(&shared)?;
    shared.logprobs = body.limited("logprobs", 0..=config.max_logprobs, "max_logprobs")?;
    if let Some(best_of) = body.limited("best_of", 1..=config.max_choices, "max_choices")? {
        let shown = shared.choices;
        if best_of < shown {
            return Err(body.invalid("best_of", "must not be less than `n`"));
        }
        if stream && best_of > shown {
            return Err(body.invalid("best_of", "cannot be more than `n` in a stream"));
        }
        shared.choices = best_of;
        shared.best = (best_of > shown).then_some(shown);
    }
    let begins = body.boolean_or("add_special_tokens", true)?;
    let contents = read_contents(&mut body, "prompt", begins)?;
    body.check_entries("prompt", contents.len(), ("max_prompts", config.max_prompts))?;
    let logprobs = shared.logprobs;
    if let Some(top) = logprobs.filter(|_| echo) {
        let param = if prompt_logprobs > logprobs { "prompt_logprobs" } else { "logprobs" };
        let top = top.max(prompt_logprobs.unwrap_or(0));
        shared.told = Some(Named { value: Told { start: Some(0), top }, param });
    }
    let truncate = parameters::truncate(&mut body)?;
    if echo && truncate.is_some() {
        return Err(body.invalid("echo", "cannot show a prompt that is truncated"));
    }
    body.finish()?;
    let choices = shared.best.unwrap_or(shared.choices);
    let echoed = if echo { contents.clone() } else { Vec::new() };
    let reply =
        CompletionsReply { include_usage, logprobs, prompt_logprobs, echoed, choices, offsets: Vec::new() };
    let ask = Ask { model, prompts: prompts("prompt", contents, truncate).collect(), parameters: shared };
    Ok(Call { ask, reply: Box::new(reply) })
}

/// A string, strings, tokens, or arrays of tokens.
///
/// # Errors
/// When it is none of them.
pub fn read_contents(body: &mut Fields, field: &str, begins: bool) -> Result<Vec<Content>, ApiError> {
    let items = match body.require(field)? {
        Value::String(text) => return Ok(vec![Content::Text { text, begins }]),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(ApiError::invalid(field, "must be a string or a non-empty array")),
    };
    if items[0].is_number() {
        return Ok(vec![Content::Tokens(token_ids(&items, field)?)]);
    }
    let contents = items.into_iter().enumerate().map(|(i, item)| match item {
        Value::String(text) => Ok(Content::Text { text, begins }),
        Value::Array(ids) => Ok(Content::Tokens(token_ids(&ids, &format!("{field}[{i}]"))?)),
        _ => Err(ApiError::invalid(format!("{field}[{i}]"), "must be a string or an array of token ids")),
    });
    contents.collect()
}

/// Prompts of what a field holds.
pub fn prompts(
    field: &str,
    contents: Vec<Content>,
    truncate: Option<Truncate>,
) -> impl Iterator<Item = Prompt> {
    let one = contents.len() == 1;
    contents.into_iter().enumerate().map(move |(i, content)| {
        let param = if one { field.to_owned() } else { format!("{field}[{i}]") };
        Prompt { param, content, truncate }
    })
}
