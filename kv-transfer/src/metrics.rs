//! What was moved, how long it took, what went wrong.

use std::{sync::atomic::AtomicU64, time::Duration};

use baton_protocol::NodeId;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{PathReport, TransportKind};

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
struct PathLabels {
    peer: String,
    transport: &'static str,
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
    bandwidth: Family<PathLabels, Gauge<f64, AtomicU64>>,
    paths: Family<PathLabels, Gauge>,
    fallbacks: Family<PathLabels, Gauge>,
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
            bandwidth: Family::default(),
            paths: Family::default(),
            fallbacks: Family::default(),
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
        }
        registry.register_with_unit(
            "bandwidth_per_second",
            "measured when the latest session with a peer opened",
            Unit::Bytes,
            self.bandwidth.clone(),
        );
        registry.register("paths", "sessions by peer and transport in use", self.paths.clone());
        let help = "those of them whose node was told to use another transport";
        registry.register("path_fallbacks", help, self.fallbacks.clone());
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

    pub(crate) fn session_opened(&self, peer: &NodeId, path: &PathReport) {
        self.sessions.inc();
        let labels =
            |transport: TransportKind| PathLabels { peer: peer.0.clone(), transport: transport.as_str() };
        for tried in &path.tried {
            if let Ok(Some(rate)) = tried.outcome {
                self.bandwidth.get_or_create(&labels(tried.transport)).set(rate);
            }
        }
        self.paths.get_or_create(&labels(path.transport)).inc();
        if let Some(why) = path.fallback() {
            tracing::warn!(%peer, why, "another transport than the one told");
            self.fallbacks.get_or_create(&labels(path.transport)).inc();
        }
    }

    pub(crate) fn session_ended(&self, peer: &NodeId, path: &PathReport) {
        self.sessions.dec();
        let labels =
            |transport: TransportKind| PathLabels { peer: peer.0.clone(), transport: transport.as_str() };
        let used = labels(path.transport);
        if path.fallback().is_some() && self.fallbacks.get_or_create(&used).dec() == 1 {
            self.fallbacks.remove(&used);
        }
        // Nodes come under ever new names: of those that are gone nothing is told.
        if self.paths.get_or_create(&used).dec() == 1 {
            self.paths.remove(&used);
            for tried in &path.tried {
                self.bandwidth.remove(&labels(tried.transport));
            }
        }
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
    use crate::{Tried, Wanted};

    #[test]
    fn both_sides_fit_into_one_registry() {
        let mut registry = Registry::default();
        let sides = [Side::Sending, Side::Receiving].map(TransferMetrics::new);
        sides.iter().for_each(|metrics| metrics.register(&mut registry));
        sides[0].ended(Outcome::Busy, Duration::from_millis(5));
        let shm = Tried { transport: TransportKind::Shm, outcome: Ok(Some(7.0)) };
        let tcp = Tried { transport: TransportKind::Tcp, outcome: Ok(None) };
        let wanted = [Wanted::Only(TransportKind::Shm), Wanted::Auto];
        let path = PathReport { transport: TransportKind::Tcp, tried: vec![shm, tcp], wanted };
        sides[1].session_opened(&"p".into(), &path);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("transfer_sending_handoffs_total{outcome=\"busy\"} 1"), "{text}");
        for line in [
            "bandwidth_per_second_bytes{peer=\"p\",transport=\"shm\"} 7.0",
            "paths{peer=\"p\",transport=\"tcp\"} 1",
            "path_fallbacks{peer=\"p\",transport=\"tcp\"} 1",
        ] {
            assert!(text.contains(&format!("transfer_receiving_{line}")), "{text}");
        }
        sides[1].session_ended(&"p".into(), &path);
        text.clear();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(!text.contains("peer="), "{text}");
    }
}
