//! Sizes and limits of an engine.

use std::sync::Arc;

use baton_model::ModelText;
use serde::Deserialize;

use crate::{backend::Backend, kv::PoolConfig};

/// Everything an engine is told besides its backend.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Pages of the pool.
    pub pages: usize,
    /// Longest sequence in tokens; no longer than the pool is taken to be.
    pub context_tokens: usize,
    /// End-of-sequence tokens of the model.
    pub eos_tokens: Vec<u32>,
    /// The model's text, for grammars; without it they are refused.
    pub text: Option<Arc<ModelText>>,
    /// Whether pages are zeroed when they go to another sequence or handoff.
    pub zeroes_pages: bool,
    /// The settings that users may change.
    pub scheduler: SchedulerConfig,
}

/// How steps are filled.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// New tokens of a step; 0 means 512, or on a card 8192. Generating sequences take
    /// theirs first, prompts share the rest, of which there is always one page at least.
    pub max_batch_tokens: usize,
    /// How long a step may take in which answers go on and prompts are
    /// computed, in milliseconds: the prompts get the tokens that fit, by the
    /// pace of steps before, but four for each answer, and a page, at least.
    /// 0: no limit.
    pub mixed_step_ms: u64,
    /// Shortest time between tokens, in milliseconds, that an answer can have kept;
    /// shorter ones count as this. Keeping short ones makes batches small.
    pub least_itl_ms: u64,
    /// Answers computed at the same time.
    pub max_sequences: usize,
    /// Requests that may wait; more are refused.
    pub max_waiting: usize,
    /// Share of the pool that may be promised to handoffs that have not started.
    pub promised_share: f64,
    /// Share of the pool for prompts of other nodes; a single prompt may exceed it.
    pub prefill_share: f64,
    /// Share of the pool up to which answers are started; a single one may exceed it.
    pub decode_share: f64,
    /// Pieces, by layer, in which a chunk of a prompt is reported to its handoff.
    pub layer_groups: u32,
    /// Events that a slow reader may leave unread before its sequence pauses.
    pub event_buffer: usize,
    /// Threads that find the tokens which grammars allow, while others compute.
    pub grammar_threads: usize,
}

// === impl EngineConfig ===

impl EngineConfig {
    /// Default settings for a pool of `pages` pages.
    pub fn new(pages: usize, context_tokens: usize) -> Self {
        Self {
            pages,
            context_tokens,
            eos_tokens: Vec::new(),
            text: None,
            zeroes_pages: false,
            scheduler: SchedulerConfig::default(),
        }
    }

    pub(crate) fn pool(&self) -> PoolConfig {
        let share = |share: f64| ((self.pages as f64 * share.clamp(0.0, 1.0)) as usize).min(self.pages);
        PoolConfig {
            pages: self.pages,
            max_promised: share(self.scheduler.promised_share),
            max_prefill: share(self.scheduler.prefill_share),
            max_decode: share(self.scheduler.decode_share),
            zeroes: self.zeroes_pages,
        }
    }
}

// === impl SchedulerConfig ===

impl SchedulerConfig {
    /// New tokens of a step over this backend.
    pub fn batch_tokens(&self, backend: &dyn Backend) -> usize {
        match self.max_batch_tokens {
            0 => backend.batch_tokens(),
            tokens => tokens,
        }
    }
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_batch_tokens: 0,
            mixed_step_ms: 45,
            least_itl_ms: 10,
            max_sequences: 256,
            max_waiting: 1024,
            promised_share: 0.8,
            prefill_share: 0.75,
            decode_share: 1.0,
            layer_groups: 4,
            event_buffer: 256,
            grammar_threads: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::mock::{MockBackend, MockConfig};

    #[test]
    fn settings_have_defaults_and_unknown_ones_are_refused() {
        let read = |text: &str| serde_json::from_str::<SchedulerConfig>(text);
        assert_eq!(read("{}").unwrap(), SchedulerConfig::default());
        assert_eq!(read(r#"{"max_sequences": 3}"#).unwrap().max_sequences, 3);
        assert!(read(r#"{"max_sequence": 3}"#).is_err());
    }

    #[test]
    fn the_backend_says_how_many_tokens_a_step_has_unless_a_user_does() {
        let backend = MockBackend::new(MockConfig::default(), 16);
        let of = |max_batch_tokens| {
            SchedulerConfig { max_batch_tokens, ..SchedulerConfig::default() }.batch_tokens(&backend)
        };
        assert_eq!((of(0), of(7)), (backend.batch_tokens(), 7));
    }

    #[test]
    fn shares_are_of_the_pool() {
        let mut config = EngineConfig::new(10, 100);
        config.scheduler.promised_share = 0.5;
        config.scheduler.prefill_share = 7.0;
        config.scheduler.decode_share = -1.0;
        assert_eq!(
            config.pool(),
            PoolConfig { pages: 10, max_promised: 5, max_prefill: 10, max_decode: 0, zeroes: false }
        );
    }
}
