//! OpenAI's answer objects, borrowed from what is being sent.

use baton_protocol::FinishReason;
use serde::Serialize;

use super::{
    Envelope, Kind,
    logprobs::{ChatLogprobs, CompletionLogprobs},
    usage::Usage,
};

/// A whole answer or one chunk of a stream.
#[derive(Serialize)]
pub struct Object<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Left off, null or there: a stream that ends with usage says null until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<&'a Usage<'a>>>,
}

#[derive(Serialize)]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub message: ChatMessage<'a>,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
pub struct ChatMessage<'a> {
    pub role: &'static str,
    pub content: &'a str,
    pub refusal: Option<&'a str>,
}

#[derive(Serialize)]
pub struct ChatChunkChoice<'a> {
    pub index: u32,
    pub delta: ChatDelta<'a>,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
pub struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

/// The same in a whole answer and in a chunk.
#[derive(Serialize)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub logprobs: Option<CompletionLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
}

/// OpenAI's word for it.
pub fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

// === impl Envelope ===

impl Envelope {
    /// A whole answer with these choices.
    pub fn whole<'a, C>(&'a self, choices: &'a [C], usage: &'a Usage<'a>) -> Object<'a, C> {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completions => "text_completion",
        };
        self.object(object, choices, Some(Some(usage)))
    }

    /// A chunk with these choices.
    pub fn chunk<'a, C>(&'a self, choices: &'a [C], usage: Option<Option<&'a Usage<'a>>>) -> Object<'a, C> {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completions => "text_completion",
        };
        self.object(object, choices, usage)
    }

    fn object<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Option<&'a Usage<'a>>>,
    ) -> Object<'a, C> {
        Object { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}
