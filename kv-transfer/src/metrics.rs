//! What was moved, how long it took, what went wrong.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use baton_protocol::NodeId;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Which end of handoffs is measured; names the metrics apart on a node that is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The prefill node's end.
    Sending,
    /// The decode node's end.
    Receiving,
}

/// How a handoff ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Complete and right; committed.
    Committed,
    /// The KV was not needed after all.
    Dropped,
    /// The prefill node had no room.
    Busy,
    /// The receiver had no room when it came to it.
    Later,
    /// Given up by the receiving side's caller.
    Cancelled,
    /// Data or peer lost, or computing failed.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

/// Metrics of one side. Clones share them.
#[derive(Clone, Debug)]
pub struct TransferMetrics {
    side: Side,
    handoffs: Family<OutcomeLabel, Counter>,
    duration: Histogram,
    exposed: Histogram,
    bytes: Counter,
    frames: Counter,
    frame_time: Counter<f64, AtomicU64>,
    repaired: Counter,
    orphans: Counter,
    late: Counter,
    sessions: Gauge,
    bandwidth: Arc<Family<PeerLabel, Gauge<f64, AtomicU64>>>,
}

// === impl Outcome ===

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Dropped => "dropped",
            Self::Busy => "busy",
            Self::Later => "later",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

// === impl TransferMetrics ===

impl TransferMetrics {
    pub(crate) fn new(side: Side) -> Self {
        let seconds = || Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        Self {
            side,
            handoffs: Family::default(),
            duration: seconds(),
            exposed: seconds(),
            bytes: Counter::default(),
            frames: Counter::default(),
            frame_time: Counter::default(),
            repaired: Counter::default(),
            orphans: Counter::default(),
            late: Counter::default(),
            sessions: Gauge::default(),
            bandwidth: Arc::default(),
        }
    }

    /// Adds the metrics to a registry, once, under a prefix that names the side.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(match self.side {
            Side::Sending => "transfer_sending",
            Side::Receiving => "transfer_receiving",
        });
        let unit = Unit::Seconds;
        registry.register("handoffs", "handoffs by how they ended", self.handoffs.clone());
        registry.register_with_unit(
            "duration",
            "from PREFILL to the end",
            unit.clone(),
            self.duration.clone(),
        );
        if self.side == Side::Receiving {
            let help = "from the first token to complete KV";
            registry.register_with_unit("exposed", help, unit.clone(), self.exposed.clone());
            registry.register_with_unit(
                "bandwidth_per_second",
                "measured by the latest probe of a peer's data path",
                Unit::Bytes,
                (*self.bandwidth).clone(),
            );
        }
        registry.register_with_unit("payload", "bytes of frames", Unit::Bytes, self.bytes.clone());
        registry.register("frames", "frames, repeats included", self.frames.clone());
        registry.register_with_unit("frame_time", "time spent moving frames", unit, self.frame_time.clone());
        registry.register("frames_repaired", "frames sent or received again", self.repaired.clone());
        registry.register("orphans", "handoffs that only one side knew of", self.orphans.clone());
        registry.register("late_messages", "messages for handoffs that had ended", self.late.clone());
        registry.register("sessions", "open sessions", self.sessions.clone());
    }

    pub(crate) fn frame(&self, bytes: u64, duration: Duration) {
        self.frames.inc();
        self.bytes.inc_by(bytes);
        self.frame_time.inc_by(duration.as_secs_f64());
    }

    pub(crate) fn ended(&self, outcome: Outcome, duration: Duration) {
        self.handoffs.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    pub(crate) fn exposed(&self, duration: Duration) {
        self.exposed.observe(duration.as_secs_f64());
    }

    pub(crate) fn repaired(&self, frames: u64) {
        self.repaired.inc_by(frames);
    }

    pub(crate) fn orphan(&self) {
        self.orphans.inc();
    }

    pub(crate) fn late(&self, messages: u64) {
        self.late.inc_by(messages);
    }

    pub(crate) fn session_opened(&self) {
        self.sessions.inc();
    }

    pub(crate) fn session_ended(&self) {
        self.sessions.dec();
    }

    pub(crate) fn measured(&self, peer: &NodeId, bytes_per_second: f64) {
        self.bandwidth.get_or_create(&PeerLabel { peer: peer.0.clone() }).set(bytes_per_second);
    }

    /// Handoffs that ended in this way.
    pub fn handoffs(&self, outcome: Outcome) -> u64 {
        self.handoffs.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).get()
    }

    /// Handoffs that only one side knew of, so far.
    pub fn orphans(&self) -> u64 {
        self.orphans.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_fit_into_one_registry() {
        let mut registry = Registry::default();
        let sides = [Side::Sending, Side::Receiving].map(TransferMetrics::new);
        sides.iter().for_each(|metrics| metrics.register(&mut registry));
        sides[0].ended(Outcome::Busy, Duration::from_millis(5));
        sides[1].measured(&"p".into(), 7.0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("transfer_sending_handoffs_total{outcome=\"busy\"} 1"), "{text}");
        assert!(text.contains("transfer_receiving_bandwidth_per_second_bytes{peer=\"p\"} 7.0"), "{text}");
    }
}
