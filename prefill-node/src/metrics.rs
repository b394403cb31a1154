//! What a prefill node counts, for `/metrics`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Counters of one prefill node. Clones share them.
#[derive(Clone)]
pub struct PrefillMetrics {
    refused: Family<Refusal, Counter>,
    ended: Family<Ending, Counter>,
    pub(crate) computed_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    returns: Family<Ending, Counter>,
    returned_tokens: Counter,
    rescues: Family<Ending, Counter>,
    rescued_tokens: Counter,
    pub(crate) queue: Histogram,
    pub(crate) prefill: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    /// `draining`, `full`, `engine` or `returns`.
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    outcome: &'static str,
}

/// How a prompt that was taken ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// Its handoff ended first.
    GivenUp,
}

/// Seconds, from a millisecond to a minute.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 30.0, 60.0];

// === impl PrefillMetrics ===

impl Default for PrefillMetrics {
    fn default() -> Self {
        Self {
            refused: Family::default(),
            ended: Family::default(),
            computed_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            returns: Family::default(),
            returned_tokens: Counter::default(),
            rescues: Family::default(),
            rescued_tokens: Counter::default(),
            queue: Histogram::new(SECONDS),
            prefill: Histogram::new(SECONDS),
        }
    }
}

impl PrefillMetrics {
    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("prefill");
        registry.register("handoffs_refused", "Prompts not taken", self.refused.clone());
        registry.register("handoffs_ended", "Prompts taken, by how they ended", self.ended.clone());
        registry.register(
            "computed_tokens",
            "Prompt tokens computed for decode nodes",
            self.computed_tokens.clone(),
        );
        registry.register(
            "cached_tokens",
            "Prompt tokens found in the prefix cache of this node",
            self.cached_tokens.clone(),
        );
        registry.register(
            "returns",
            "Answers whose KV was offered back to this node, by what came of it",
            self.returns.clone(),
        );
        registry.register(
            "returned_tokens",
            "Tokens whose KV came back into the prefix cache",
            self.returned_tokens.clone(),
        );
        registry.register(
            "rescues",
            "Prompts of which another prefill node had sent a part before it broke off, by what came of that part",
            self.rescues.clone(),
        );
        registry.register(
            "rescued_tokens",
            "Tokens whose KV came from a decode node and was not computed a second time",
            self.rescued_tokens.clone(),
        );
        registry.register_with_unit(
            "queue",
            "From taking a prompt to reserving its pages",
            Unit::Seconds,
            self.queue.clone(),
        );
        registry.register_with_unit(
            "duration",
            "From reserving a prompt's pages to its first token",
            Unit::Seconds,
            self.prefill.clone(),
        );
    }

    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Refusal { reason }).inc();
    }

    pub(crate) fn returned(&self, outcome: &'static str, tokens: u64) {
        self.returns.get_or_create(&Ending { outcome }).inc();
        self.returned_tokens.inc_by(tokens);
    }

    /// Tokens whose KV came back into the prefix cache.
    pub fn returned_tokens(&self) -> u64 {
        self.returned_tokens.get()
    }

    pub(crate) fn rescued(&self, outcome: &'static str, tokens: u64) {
        self.rescues.get_or_create(&Ending { outcome }).inc();
        self.rescued_tokens.inc_by(tokens);
    }

    /// Tokens whose KV came from a decode node and was not computed a second time.
    pub fn rescued_tokens(&self) -> u64 {
        self.rescued_tokens.get()
    }

    /// Prompt tokens computed for decode nodes.
    pub fn computed_tokens(&self) -> u64 {
        self.computed_tokens.get()
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::GivenUp => "given_up",
        };
        self.ended.get_or_create(&Ending { outcome }).inc();
    }
}
