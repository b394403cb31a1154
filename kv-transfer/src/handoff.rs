//! One handoff: what is asked for, what a caller sees, and the two machines.
//!
//! - [`sender`]: the prefill node's machine
//! - [`receiver`]: the decode node's machine; its dealing with frames is in `arrival`, what is out in [`missing`]
//! - [`plan`]: rectangles of computed KV, cut into frames
//! - [`returned`]: KV on its way back, for the next turn
//! - [`coverage`]: which part of a rectangle is in

mod arrival;
pub mod coverage;
pub mod missing;
pub mod plan;
pub mod receiver;
pub mod returned;
pub mod sender;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use baton_protocol::{
    Failure, HandoffId, KvSink, Request, Token,
    wire::{self, Malformed},
};

use crate::{HandoffError, KvPeer};

/// What a decode node asks a prefill node for.
#[derive(Clone, Debug, PartialEq)]
pub struct HandoffAsk {
    /// Which handoff.
    pub id: HandoffId,
    /// The request; its tokens are the prompt and what all unfinished choices have generated in common.
    pub request: Request,
    /// How many of the tokens are the prompt.
    pub prompt_tokens: u32,
    /// KV of `[0, have)` is with the receiver; only the rest is sent.
    pub have: u32,
    /// Choices that need their next token sampled.
    pub sample: Vec<u32>,
    /// Time left for the whole request.
    pub deadline: Duration,
    /// Nothing is computed: what is cached is sent, or nothing.
    pub from_cache: bool,
    /// Who gives KV of `[0, have)` to whoever is asked, should that be cheaper than to compute it: the asker.
    pub holder: Option<KvPeer>,
}

/// The same, as the sending side sees it.
pub type PrefillJob = HandoffAsk;

/// Where a handoff will land: holds the promise until pages are needed.
pub trait Landing: Send {
    /// Called at most once, at START: turns the promise into pages. None: no
    /// room after all, and the handoff ends.
    fn bind(&mut self) -> Option<Arc<dyn KvSink>>;
}

/// What the receiving side learns of a handoff, in this order. `Ready` and `Lost` end it.
pub enum HandoffEvent {
    /// The prompt waits for the prefill node's engine.
    Queued {
        /// Prompts ahead.
        position: u32,
        /// Expected wait; zero when unknown.
        eta: Duration,
    },
    /// The prefill node has reserved all pages, and so have we.
    Started {
        /// Tokens that the prefill node had cached.
        cached_tokens: u32,
        /// How long the prompt waited there.
        queue: Duration,
    },
    /// The next token of each sampled choice.
    First(Vec<Token>),
    /// Every frame is in and right; the sender has been told.
    Ready {
        /// The pages, `[have, tokens)` filled.
        sink: Arc<dyn KvSink>,
        /// How it went.
        stats: HandoffStats,
    },
    /// There will be no complete KV from this handoff.
    Lost {
        /// KV of `[0, complete_tokens)` is whole, counting what the receiver had. Ends on a page border.
        complete_tokens: u32,
        /// The pages, if more is whole than the receiver had.
        sink: Option<Arc<dyn KvSink>>,
        /// Why. `Overloaded` is BUSY, or no pages on this side.
        reason: Failure,
    },
}

/// How a handoff went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoffStats {
    /// KV bytes landed, repeats not counted.
    pub bytes: u64,
    /// First frame to last frame.
    pub transfer: Duration,
    /// First token known to KV complete.
    pub exposed: Duration,
    /// First chunk to first token, on the prefill node.
    pub prefill: Duration,
    /// Frames that had to be asked for again.
    pub repaired_frames: u32,
}

// === impl HandoffAsk ===

impl HandoffAsk {
    /// Tokens in all.
    pub(crate) fn tokens(&self) -> u32 {
        u32::try_from(self.request.tokens.len()).unwrap_or(u32::MAX)
    }

    /// Checked on both sides: by the asker before it asks, by the asked because it trusts nobody.
    pub(crate) fn check(&self) -> Result<(), HandoffError> {
        let bad = |field| Err(HandoffError::Ask { field });
        if self.have >= self.tokens() {
            return bad("have");
        }
        if self.prompt_tokens == 0 || self.prompt_tokens > self.tokens() {
            return bad("prompt tokens");
        }
        if self.sample.iter().any(|&choice| choice >= self.request.choices) {
            return bad("sample");
        }
        Ok(())
    }

    /// What comes from `asker`.
    ///
    /// # Errors
    /// When it says less than it must.
    pub(crate) fn from_wire(ask: wire::PrefillAsk, asker: KvPeer) -> Result<Self, Malformed> {
        let control_addr = ask.held_at;
        let holder = (!control_addr.is_empty()).then_some(KvPeer { control_addr, ..asker });
        Ok(Self {
            id: ask.id.ok_or(Malformed { field: "handoff id" })?.try_into()?,
            request: ask.request.ok_or(Malformed { field: "request" })?.try_into()?,
            prompt_tokens: ask.prompt_tokens,
            have: ask.have,
            sample: ask.sample,
            deadline: Duration::from_millis(ask.deadline_ms),
            from_cache: ask.from_cache,
            holder,
        })
    }
}

impl From<&HandoffAsk> for wire::PrefillAsk {
    fn from(ask: &HandoffAsk) -> Self {
        Self {
            id: Some(ask.id.into()),
            request: Some((&ask.request).into()),
            prompt_tokens: ask.prompt_tokens,
            have: ask.have,
            sample: ask.sample.clone(),
            deadline_ms: u64::try_from(ask.deadline.as_millis()).unwrap_or(u64::MAX),
            from_cache: ask.from_cache,
            held_at: ask.holder.as_ref().map(|holder| holder.control_addr.clone()).unwrap_or_default(),
        }
    }
}
