//! KV on its way back: a decode node says which tokens' KV it has when an
//! answer has ended, and the prefill node that will see the next turn fetches
//! them. It asks like a decode node does, in a session the other way, for what
//! is cached and nothing else.

use std::time::Duration;

use baton_protocol::{
    HandoffId, Request, Sampling, Stop,
    wire::{self, Malformed},
};

use super::HandoffAsk;
use crate::KvPeer;

/// KV that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which handoff fetches it.
    pub id: HandoffId,
    /// Whose request it was; keys the prefix cache.
    pub tenant: String,
    /// The prompt and its answer, as far as there is KV.
    pub tokens: Vec<u32>,
    /// Who has it.
    pub holder: KvPeer,
}

// === impl Returned ===

impl Returned {
    /// What comes from `holder`.
    ///
    /// # Errors
    /// When it names no handoff or no tokens.
    pub(crate) fn from_wire(message: wire::Return, holder: KvPeer) -> Result<Self, Malformed> {
        let wire::Return { id, tenant, tokens, control_addr } = message;
        let id = id.ok_or(Malformed { field: "handoff id" })?.try_into()?;
        if tokens.is_empty() {
            return Err(Malformed { field: "tokens" });
        }
        Ok(Self { id, tenant, tokens, holder: KvPeer { control_addr, ..holder } })
    }

    /// Asks for KV of `[have, end)` within `deadline`.
    pub fn ask(&self, have: u32, end: u32, deadline: Duration) -> HandoffAsk {
        let tokens = self.tokens[..(end as usize).min(self.tokens.len())].to_vec();
        let request = Request {
            id: self.id.request,
            model: String::new(),
            tenant: self.tenant.clone(),
            tokens,
            sampling: Sampling::greedy(),
            stop: Stop { max_tokens: 1, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
            choices: 1,
            logprobs: false,
            top_logprobs: 0,
            prompt_logprobs: None,
            embedding: None,
            trace: String::new(),
            deadline,
        };
        let prompt_tokens = request.tokens.len() as u32;
        HandoffAsk {
            id: self.id,
            request,
            prompt_tokens,
            have,
            sample: Vec::new(),
            deadline,
            from_cache: true,
            holder: None,
        }
    }
}
