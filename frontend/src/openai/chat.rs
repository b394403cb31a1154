//! The body of a chat call.

use serde_json::{Map, Value, json};

use super::{
    chat_reply::ChatReply,
    messages::read_conversation,
    parameters::{self, Streaming},
};
use crate::{
    Config,
    ask::{Ask, Call, Content, Prompt},
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
    let mut shared = parameters::read(&mut body, config, false)?;
    shared.stream = stream;
    let prompt_logprobs = parameters::told_whole(&shared)?;
    shared.logprobs = logprobs(&mut body, config)?;
    let truncate = parameters::truncate(&mut body)?;
    let mut conversation = read_conversation(&mut body, config)?;
    conversation.effort = parameters::effort(&mut body, "reasoning_effort", "reasoning_effort")?;
    body.only("modalities", &[json!(["text"])])?;
    body.only("verbosity", &[json!("medium")])?;
    body.only("echo", &[json!(false)])?;
    body.only("add_special_tokens", &[json!(false)])?;
    // Reasoning is apart from the answer, as it comes.
    for apart in ["separate_reasoning", "stream_reasoning", "include_reasoning"] {
        body.only(apart, &[json!(true)])?;
    }
    body.finish()?;
    let prompt =
        Prompt { param: "messages".to_owned(), content: Content::Chat(Box::new(conversation)), truncate };
    Ok(Call {
        ask: Ask { model, prompts: vec![prompt], parameters: shared },
        reply: Box::new(ChatReply { include_usage, prompt_logprobs }),
    })
}

fn logprobs(body: &mut Fields, config: &Config) -> Result<Option<u32>, ApiError> {
    let logprobs = body.boolean("logprobs")?;
    let top = body.limited("top_logprobs", 0..=config.max_logprobs, "max_logprobs")?;
    if top.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "needs `logprobs` to be true"));
    }
    Ok(logprobs.then_some(top.unwrap_or(0)))
}
