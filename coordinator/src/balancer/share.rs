//! What part of the nodes' work comes from this coordinator: several may serve one cluster.

use std::collections::BTreeMap;

use baton_protocol::NodeId;

/// Attempts of late that nodes have begun, and those of them that are ours.
#[derive(Debug, Default)]
pub(crate) struct Share {
    seen: BTreeMap<NodeId, Attempts>,
    all: f64,
    own: f64,
}

/// Attempts on a node, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// As the node says, whoever asked.
    pub(crate) begun: u64,
    /// Sent by this coordinator.
    pub(crate) sent: u64,
}

/// What was counted keeps so much of its weight at each look.
const KEPT: f64 = 0.9;

// === impl Share ===

impl Share {
    /// Counts what was begun since the last look. Returns how many times our own work all of it is.
    pub(crate) fn times(&mut self, nodes: impl IntoIterator<Item = (NodeId, Attempts)>) -> f64 {
        self.all *= KEPT;
        self.own *= KEPT;
        // Nodes that are gone are forgotten: names of nodes may be new every time.
        let seen = std::mem::take(&mut self.seen);
        for (node, now) in nodes {
            // What began before the first look, and in another run of the node, is not compared.
            let before = seen.get(&node).copied();
            self.seen.insert(node, now);
            let Some(before) = before else { continue };
            if now.begun >= before.begun && now.sent >= before.sent {
                self.all += (now.begun - before.begun) as f64;
                self.own += (now.sent - before.sent) as f64;
            }
        }
        if self.own >= 1.0 { (self.all / self.own).max(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_others_is_counted_from_the_first_look_on() {
        let mut share = Share::default();
        let at = |begun, sent| [(NodeId::from("d"), Attempts { begun, sent })];
        assert_eq!(share.times(at(1000, 0)), 1.0);
        for look in 1..20 {
            let times = share.times(at(1000 + 30 * look, 10 * look));
            assert!((times - 3.0).abs() < 1e-9, "{times}");
        }
        // The others are gone; the node was restarted.
        share.times(at(5, 190));
        for look in 1..50 {
            share.times(at(5 + 10 * look, 190 + 10 * look));
        }
        let times = share.times(at(515, 700));
        assert!((1.0..1.05).contains(&times), "{times}");
        share.times([(NodeId::from("e"), Attempts { begun: 7, sent: 0 })]);
        assert_eq!(share.seen.keys().collect::<Vec<_>>(), [&NodeId::from("e")]);
    }
}
