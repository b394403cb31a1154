//! What an attempt sends back to the coordinator, in order.

use std::time::Duration;

use crate::{Failure, NodeId};

/// One step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The decode node took the attempt; prompt tokens it had cached.
    Accepted {
        /// Prompt tokens in the decode node's own prefix cache.
        cached_tokens: u32,
    },
    /// Somebody begins to compute the prompt, or goes on where another one broke off. Readers of an answer do
    /// not see it.
    Computing {
        /// The prefill node; none: the decode node itself.
        node: Option<NodeId>,
        /// Tokens that need no computing.
        cached_tokens: u32,
    },
    /// A prefill node broke off that had taken the prompt and not computed it. Readers of an answer do not see it.
    BrokeOff {
        /// Which.
        node: NodeId,
    },
    /// How likely tokens of the prompt are, if that was asked for; before the first `Token`.
    Prompt(PromptPart),
    /// The embedding that was asked for in place of an answer, of length 1; before the end of its choice.
    Embedding(Vec<f32>),
    /// A token of one choice. Positions of a choice are contiguous from 0.
    Token(Token),
    /// A choice ended; no token of it follows.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// Where the time went; once, before the last `Finished`.
    Bill(Bill),
    /// The attempt ended without finishing; terminal.
    Failed(Failure),
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Which answer of the request, from 0.
    pub choice: u32,
    /// Place in the answer, from 0.
    pub position: u32,
    /// Vocabulary id.
    pub id: u32,
    /// Natural log-probability under the model (before temperature), if asked for.
    pub logprob: Option<f32>,
    /// Likeliest tokens at this place, best first, if asked for.
    pub top: Vec<TopLogprob>,
}

/// How likely some tokens of the prompt are, one after another. Parts of a prompt are contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptPart {
    /// Place of the first of them in the prompt.
    pub first: u32,
    /// Never empty.
    pub tokens: Vec<PromptToken>,
}

/// How likely a token of the prompt is behind those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// Natural log-probability under the model.
    pub logprob: f32,
    /// 1 for the likeliest at its place.
    pub rank: u32,
    /// Likeliest tokens at its place, best first, if asked for.
    pub top: Vec<TopLogprob>,
}

/// An alternative at one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopLogprob {
    /// Vocabulary id.
    pub id: u32,
    /// Natural log-probability.
    pub logprob: f32,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token (or, set by the frontend, a stop string).
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}

/// Where the time of an attempt went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bill {
    /// Waiting for the first prefill step; as the coordinator passes it on, for a place among
    /// the running requests too.
    pub queue: Duration,
    /// First prefill step to first token.
    pub prefill: Duration,
    /// First frame to last frame.
    pub transfer: Duration,
    /// First token sampled to KV complete: what the handoff adds to the second token.
    pub exposed: Duration,
    /// KV complete to the last token; after a local prefill, first token to last.
    pub decode: Duration,
    /// Attempts before the one that ended the answer, as the coordinator passes it on.
    pub earlier: Duration,
    /// KV bytes received.
    pub transfer_bytes: u64,
    /// Pages they filled.
    pub transfer_pages: u32,
    /// Prompt tokens that nobody computed in this attempt; as the coordinator passes it on, those that
    /// nobody computed for this request.
    pub cached_tokens: u32,
    /// Who prefilled; none when the decode node did.
    pub prefill_node: Option<NodeId>,
    /// Frames asked for again.
    pub repaired_frames: u32,
}
