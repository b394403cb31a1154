//! An answer as one object, when it is complete.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use baton_protocol::FinishReason;
use serde::Serialize;

use super::{
    Envelope, Kind,
    logprobs::{ChatLogprobs, CompletionLogprobs},
    shapes::{ChatChoice, ChatMessage, CompletionChoice, finish_word},
    usage::Usage,
};
use crate::{
    error::ApiError,
    generation::{Generation, TokenWords},
};

/// One choice, collected.
#[derive(Clone, Default)]
struct Collected {
    text: String,
    tokens: Vec<TokenWords>,
    finish: Option<FinishReason>,
}

/// Waits for the end of a generation and puts it into one response.
///
/// # Errors
/// When the generation fails.
pub async fn whole(mut generation: Generation, envelope: Envelope) -> Result<Response, ApiError> {
    let mut collected = vec![Collected::default(); envelope.choices as usize];
    while let Some(delta) = generation.next().await? {
        let choice = &mut collected[delta.index as usize];
        choice.text.push_str(&delta.text);
        choice.tokens.extend(delta.token);
        choice.finish = delta.finish;
    }
    let used = generation.settle().await;
    let usage = Usage::from(&used);
    match envelope.kind {
        Kind::Chat => {
            let choices: Vec<_> = collected.iter().zip(0..).map(Collected::chat).collect();
            respond(&envelope.whole(&choices, &usage))
        }
        Kind::Completions => {
            let choices: Vec<_> = collected.iter().zip(0..).map(Collected::completion).collect();
            respond(&envelope.whole(&choices, &usage))
        }
    }
}

fn respond(object: &impl Serialize) -> Result<Response, ApiError> {
    let bytes =
        serde_json::to_vec(object).map_err(|_| ApiError::internal("the answer cannot be written as JSON"))?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}

// === impl Collected ===

impl Collected {
    fn chat((choice, index): (&Self, u32)) -> ChatChoice<'_> {
        let logprobs = (!choice.tokens.is_empty()).then_some(ChatLogprobs(&choice.tokens));
        let message = ChatMessage { role: "assistant", content: &choice.text, refusal: None };
        ChatChoice { index, message, logprobs, finish_reason: choice.finish.map(finish_word) }
    }

    fn completion((choice, index): (&Self, u32)) -> CompletionChoice<'_> {
        let tokens = &choice.tokens;
        let logprobs = (!tokens.is_empty()).then_some(CompletionLogprobs { tokens, offset: 0 });
        CompletionChoice {
            index,
            text: &choice.text,
            logprobs,
            finish_reason: choice.finish.map(finish_word),
        }
    }
}
