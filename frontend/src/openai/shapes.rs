//! OpenAI's answer objects, borrowed from what is being sent.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    logprobs::{ChatLogprobs, CompletionLogprobs, PromptLogprobs},
    usage::Usage,
};
use crate::{ask::Tier, generation::End, reply::Facts};

/// What every object of an answer begins with.
pub struct Envelope<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    service_tier: Option<&'static str>,
}

/// A whole answer or one chunk of a stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{C}Answer")]
pub struct Object<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    /// Where the call says one.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    choices: &'a [C],
    /// Left off, null or there: a stream that ends with usage says null until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Usage<'a>>")]
    usage: Option<Option<&'a Usage<'a>>>,
    /// vLLM's addition; in chats here, in completions at each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs<'a>>,
}

#[derive(Serialize, JsonSchema)]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub message: ChatMessage<'a>,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
pub struct ChatMessage<'a> {
    pub role: &'static str,
    /// None beside calls, if there is no text.
    pub content: Option<&'a str>,
    pub refusal: Option<&'a str>,
    /// vLLM's name for thoughts.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reasoning: &'a str,
    /// The name that vLLM used to have, and others have.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reasoning_content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

/// A call of a tool, or a piece of one.
#[derive(Serialize, JsonSchema)]
pub struct ToolCall<'a> {
    /// In streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: FunctionCall<'a>,
}

#[derive(Serialize, JsonSchema)]
pub struct FunctionCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

#[derive(Default, Serialize)]
pub struct ChatChunkChoice<'a> {
    pub index: u32,
    pub delta: ChatDelta<'a>,
    pub logprobs: Option<ChatLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
pub struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

/// The same in a whole answer and in a chunk.
#[derive(Default, Serialize, JsonSchema)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub logprobs: Option<CompletionLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs<'a>>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<&'a str>,
}

/// OpenAI's word for it.
pub fn finish_word(end: &End) -> &'static str {
    match end {
        End::Model | End::StopString(_) => "stop",
        End::Calls => "tool_calls",
        End::Length => "length",
    }
}

/// vLLM's addition to it: the stop string that ended the choice.
pub fn stop_reason(end: &End) -> Option<&str> {
    match end {
        End::StopString(stop) => Some(stop),
        End::Model | End::Calls | End::Length => None,
    }
}

// === impl Envelope ===

impl<'a> Envelope<'a> {
    /// Of the answer to a call; its id begins with `prefix`.
    pub fn new(object: &'static str, prefix: &str, facts: &'a Facts) -> Self {
        Self {
            id: format!("{prefix}-{}", facts.id),
            object,
            created: facts.created,
            model: &facts.model,
            service_tier: facts.tier.map(Tier::word),
        }
    }

    /// With these choices.
    pub fn with<C>(&'a self, choices: &'a [C], usage: Option<Option<&'a Usage<'a>>>) -> Object<'a, C> {
        Object {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: self.model,
            service_tier: self.service_tier,
            choices,
            usage,
            prompt_logprobs: None,
        }
    }
}
