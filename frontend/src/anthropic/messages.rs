//! The body of a messages call.

use baton_protocol::Sampling;
use serde_json::{Map, Value, json};

use super::reply::MessageReply;
use crate::{
    Config,
    ask::{Ask, Call, Content, Conversation, Ending, Named, Parameters, Prompt},
    error::ApiError,
    fields::Fields,
    openai::{read_text, stop_strings},
    tools,
};

/// Reads a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    let (model, prompt) = read_prompt(&mut body, config)?;
    let max_tokens = body
        .integer("max_tokens", 1..=u32::MAX)?
        .ok_or_else(|| ApiError::Missing { param: "max_tokens".to_owned() })?;
    let plain = Sampling::default();
    let sampling = Sampling {
        temperature: body.number("temperature", 0.0..=1.0)?.unwrap_or(plain.temperature),
        top_p: body.positive("top_p", 1.0)?.unwrap_or(plain.top_p),
        top_k: body.integer("top_k", 0..=u32::MAX)?.unwrap_or(plain.top_k),
        ..plain
    };
    let parameters = Parameters {
        sampling,
        max_tokens: Some(Named { value: max_tokens, param: "max_tokens" }),
        stop_strings: stop_strings(&mut body, "stop_sequences", config)?,
        stream: body.boolean("stream")?,
        ..Parameters::default()
    };
    let mut metadata = body.object("metadata")?;
    metadata.string("user_id")?;
    metadata.finish()?;
    body.only("service_tier", &[json!("auto"), json!("standard_only")])?;
    body.finish()?;
    let ask = Ask { model: Some(model), prompts: vec![prompt], parameters };
    Ok(Call { ask, reply: Box::new(MessageReply::default()) })
}

/// Reads the body of a call that only counts.
///
/// # Errors
/// As [`read`].
pub fn read_count(object: Map<String, Value>, config: &Config) -> Result<(String, Prompt), ApiError> {
    let mut body = Fields::of_body(object);
    let read = read_prompt(&mut body, config)?;
    body.finish()?;
    Ok(read)
}

/// What both calls hold: the model's name, and system and messages as a conversation.
fn read_prompt(body: &mut Fields, config: &Config) -> Result<(String, Prompt), ApiError> {
    let Value::String(model) = body.require("model")? else {
        return Err(body.invalid("model", "must be a string"));
    };
    let Value::Array(messages) = body.require("messages")? else {
        return Err(body.invalid("messages", "must be an array"));
    };
    if messages.is_empty() {
        return Err(body.invalid("messages", "must not be empty"));
    }
    body.check_entries("messages", messages.len(), ("max_messages", config.max_messages))?;
    let system = body.take("system").map(|system| read_text(system, "system", cache_control)).transpose()?;
    let mut turns = Vec::with_capacity(messages.len() + 1);
    let system = system.filter(|system| !system.is_empty());
    turns.extend(system.map(|system| json!({ "role": "system", "content": system })));
    for (i, message) in messages.into_iter().enumerate() {
        turns.extend(read_message(message, i)?);
    }
    tools::name_results(&mut turns, "messages")?;
    let tools = tools::read_anthropic(body, config, cache_control)?;
    // An answer that is begun is to be continued.
    let is_begun = |last: &Value| last["role"] == "assistant" && last.get("tool_calls").is_none();
    let ending = if turns.last().is_some_and(is_begun) { Ending::Within } else { Ending::Answer };
    let conversation = Conversation {
        bytes: tools::bytes(&turns, tools.as_ref()),
        messages: Value::Array(turns),
        tools,
        ending,
        variables: Map::new(),
        effort: read_thinking(body)?,
    };
    cache_control(body)?;
    body.only("speed", &[json!("standard")])?;
    let content = Content::Chat(Box::new(conversation));
    Ok((model, Prompt { param: "messages".to_owned(), content, truncate: None }))
}

/// What one message becomes.
fn read_message(message: Value, index: usize) -> Result<Vec<Value>, ApiError> {
    let mut message = Fields::of_value(message, format!("messages[{index}]"))?;
    let role = match message.require("role")?.as_str() {
        Some("user") => "user",
        Some("assistant") => "assistant",
        _ => return Err(message.invalid("role", "must be user or assistant")),
    };
    let content = message.require("content")?;
    let path = message.name("content");
    message.finish()?;
    tools::read_blocks(role, content, &path, |content, path| read_text(content, path, block))
}

/// What a text block may hold beside its text. Answers that are sent back have empty citations.
fn block(block: &mut Fields) -> Result<(), ApiError> {
    block.only("citations", &[json!([])])?;
    cache_control(block)
}

/// Asks for the prefix up to here to be cached, which is done for every prefix.
fn cache_control(block: &mut Fields) -> Result<(), ApiError> {
    let Some(control) = block.take("cache_control") else { return Ok(()) };
    let mut control = Fields::of_value(control, block.name("cache_control"))?;
    if control.require("type")? != "ephemeral" {
        return Err(control.invalid("type", "must be ephemeral"));
    }
    control.finish()
}

/// Thinking can be turned off, where the model's template knows how to.
fn read_thinking(body: &mut Fields) -> Result<Option<Named<String>>, ApiError> {
    let Some(thinking) = body.take("thinking") else { return Ok(None) };
    let mut thinking = Fields::of_value(thinking, "thinking".to_owned())?;
    let value = thinking.require("type")?;
    if value != "disabled" {
        return Err(ApiError::Unsupported { param: "thinking".to_owned() });
    }
    thinking.finish()?;
    Ok(Some(Named { value: "none".to_owned(), param: "thinking" }))
}
