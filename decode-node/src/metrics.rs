//! What a decode node counts, for `/metrics`.

use baton_kv_transfer::HandoffStats;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Counters of one decode node. Clones share them.
#[derive(Clone)]
pub struct DecodeMetrics {
    running: Gauge,
    attempts: Family<Outcome, Counter>,
    legs: Family<Outcome, Counter>,
    local_prefills: Counter,
    transferred_bytes: Counter,
    exposed: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// How one PREFILL of an attempt ended: the label's whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegOutcome {
    Ready,
    /// No memory here to promise.
    NoRoom,
    Refused,
    Lost,
}

/// One running attempt. Counted when dropped: as cancelled, unless it was told otherwise.
pub(crate) struct Running {
    metrics: DecodeMetrics,
    outcome: &'static str,
}

/// Seconds, from a tenth of a millisecond to ten seconds.
const SECONDS: [f64; 11] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

// === impl DecodeMetrics ===

impl Default for DecodeMetrics {
    fn default() -> Self {
        Self {
            running: Gauge::default(),
            attempts: Family::default(),
            legs: Family::default(),
            local_prefills: Counter::default(),
            transferred_bytes: Counter::default(),
            exposed: Histogram::new(SECONDS),
        }
    }
}

impl DecodeMetrics {
    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("decode");
        registry.register("attempts_running", "Attempts that have not ended", self.running.clone());
        registry.register("attempts", "Attempts by how they ended", self.attempts.clone());
        registry.register("handoff_legs", "Prefill nodes asked, by what came of it", self.legs.clone());
        registry.register(
            "local_prefills",
            "Prompts prefilled by this node itself",
            self.local_prefills.clone(),
        );
        registry.register_with_unit(
            "received",
            "KV received from prefill nodes",
            Unit::Bytes,
            self.transferred_bytes.clone(),
        );
        registry.register_with_unit(
            "handoff_exposed",
            "From the first token sampled to its KV complete here",
            Unit::Seconds,
            self.exposed.clone(),
        );
    }

    pub(crate) fn begin(&self) -> Running {
        self.running.inc();
        Running { metrics: self.clone(), outcome: "cancelled" }
    }

    pub(crate) fn leg(&self, outcome: LegOutcome) {
        let outcome = match outcome {
            LegOutcome::Ready => "ready",
            LegOutcome::NoRoom => "no_room",
            LegOutcome::Refused => "refused",
            LegOutcome::Lost => "lost",
        };
        self.legs.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn local_prefill(&self) {
        self.local_prefills.inc();
    }

    pub(crate) fn received(&self, stats: &HandoffStats) {
        self.transferred_bytes.inc_by(stats.bytes);
        self.exposed.observe(stats.exposed.as_secs_f64());
    }
}

// === impl Running ===

impl Running {
    /// Says how the attempt ended.
    pub(crate) fn end(&mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.running.dec();
        self.metrics.attempts.get_or_create(&Outcome { outcome: self.outcome }).inc();
    }
}
