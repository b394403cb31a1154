//! What a person may set on a decode node.

use std::time::Duration;

use serde::Deserialize;

/// How a decode node gets its prompts prefilled.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeConfig {
    /// Whether the node prefills a prompt itself when no prefill node can.
    pub allow_local: bool,
    /// After a prefill node was lost midway, a shorter rest of the prompt is
    /// computed here and not by the next prefill node.
    pub local_finish_below_tokens: usize,
    /// Pages promised beyond the prompt's own, so that a sequence can begin to
    /// grow as soon as it has arrived.
    pub growth_pages: usize,
    /// How long a request may wait for memory before it asks a prefill node.
    pub promise_wait_ms: u64,
    /// Advice to callers when there is no room and no prefill node said when.
    pub retry_after_ms: u64,
}

// === impl DecodeConfig ===

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            allow_local: true,
            local_finish_below_tokens: 256,
            growth_pages: 1,
            promise_wait_ms: 2_000,
            retry_after_ms: 1_000,
        }
    }
}

impl DecodeConfig {
    pub(crate) fn promise_wait(&self) -> Duration {
        Duration::from_millis(self.promise_wait_ms)
    }

    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_millis(self.retry_after_ms)
    }
}
