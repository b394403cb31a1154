//! Nodes that are slow, not dead: their steps take several times as long as
//! those of the others for the same work. Such a node gets no new work of that
//! role for a while, longer each time. Never more than three of ten nodes of a pool, so
//! that none of up to three. Pure: the clock is passed in.

use std::{collections::BTreeMap, time::Duration};

use baton_protocol::{NodeId, Role};
use tokio::time::Instant;

use crate::router::Seen;

/// Nodes that were slow lately.
#[derive(Debug, Default)]
pub struct Outliers {
    prefill: Records,
    decode: Records,
}

type Records = BTreeMap<NodeId, Record>;

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Looks in a row in which it was slow.
    slow: u32,
    /// Times that it was taken out.
    ejections: u32,
    until: Option<Instant>,
}

/// Times as slow as the middle one of the pool, and by so many seconds a step.
const TIMES: f64 = 3.0;
const BY: f64 = 0.01;
/// Tokens of a prompt that prefill nodes are compared by, read in one step.
const PROMPT: f64 = 512.0;
/// Looks in a row.
const LOOKS: u32 = 5;
/// For how long the first time.
const FOR: Duration = Duration::from_secs(30);
const LONGEST: u32 = 10;

// === impl Outliers ===

impl Outliers {
    /// Between two looks.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// Whether a node gets no new work of a role now.
    pub fn is_out(&self, role: Role, node: &NodeId, now: Instant) -> bool {
        let record = match role {
            Role::Prefill => self.prefill.get(node),
            _ => self.decode.get(node),
        };
        record.and_then(|record| record.until).is_some_and(|until| until > now)
    }

    /// Compares a model's nodes of a role: decode nodes by what a step with the pool's usual work takes
    /// them, prefill nodes by what the same prompt does. Returns those that are taken out by it.
    pub fn look<N: Seen>(&mut self, role: Role, nodes: &[N], now: Instant) -> Vec<NodeId> {
        let loads: Vec<_> = nodes.iter().map(Seen::load).collect();
        let busy = || loads.iter().filter(|load| load.running > 0);
        let count = busy().count().max(1) as f64;
        let answers = busy().map(|load| f64::from(load.running)).sum::<f64>() / count;
        let context = busy().map(|load| load.running_context_tokens as f64).sum::<f64>() / count;
        let seconds = |node: &N| {
            let steps = node.load().steps;
            let seconds = match role {
                Role::Prefill => steps.prefill?.seconds(1.0, PROMPT, PROMPT * PROMPT / 2.0),
                _ => steps.decode?.seconds(1.0, answers.max(1.0), context),
            };
            Some((node.info().id.clone(), seconds))
        };
        let pool: Vec<_> = nodes.iter().filter_map(seconds).collect();
        self.compare(role, &pool, now)
    }

    /// By the seconds that nodes take for the same work.
    fn compare(&mut self, role: Role, pool: &[(NodeId, f64)], now: Instant) -> Vec<NodeId> {
        let mut times: Vec<f64> = pool.iter().map(|(_, seconds)| *seconds).collect();
        times.sort_by(f64::total_cmp);
        let Some(&middle) = times.get(times.len().saturating_sub(1) / 2) else { return Vec::new() };
        let most = pool.len() * 3 / 10;
        let mut out = pool.iter().filter(|(node, _)| self.is_out(role, node, now)).count();
        let mut taken = Vec::new();
        for (node, seconds) in pool {
            let is_slow = *seconds > TIMES * middle && *seconds > middle + BY;
            if is_slow && self.is_due(role, node, now) && out < most {
                self.take_out(role, node, now);
                out += 1;
                taken.push(node.clone());
            } else if !is_slow && !self.is_out(role, node, now) {
                // Whoever keeps up starts anew.
                self.of(role).remove(node);
            }
        }
        taken
    }

    /// Forgets a node that has left.
    pub fn forget(&mut self, node: &NodeId) {
        self.prefill.remove(node);
        self.decode.remove(node);
    }

    fn of(&mut self, role: Role) -> &mut Records {
        match role {
            Role::Prefill => &mut self.prefill,
            _ => &mut self.decode,
        }
    }

    /// Counts a look at a slow node; whether it was slow long enough.
    fn is_due(&mut self, role: Role, node: &NodeId, now: Instant) -> bool {
        if self.is_out(role, node, now) {
            return false;
        }
        let fresh = Record { slow: 0, ejections: 0, until: None };
        let record = self.of(role).entry(node.clone()).or_insert(fresh);
        record.slow += 1;
        record.slow >= LOOKS
    }

    fn take_out(&mut self, role: Role, node: &NodeId, now: Instant) {
        if let Some(record) = self.of(role).get_mut(node) {
            record.ejections = (record.ejections + 1).min(LONGEST);
            record.slow = 0;
            record.until = Some(now + FOR * record.ejections);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(seconds: &[f64]) -> Vec<(NodeId, f64)> {
        seconds.iter().enumerate().map(|(at, seconds)| (NodeId(format!("n{at}")), *seconds)).collect()
    }

    #[test]
    fn a_node_that_stays_slow_is_out_for_longer_each_time() {
        let (mut outliers, mut now) = (Outliers::default(), Instant::now());
        let pool = pool(&[0.02, 0.021, 0.3, 0.019]);
        let slow = pool[2].0.clone();
        for times in 1..=3 {
            for look in 1..=LOOKS {
                let taken = outliers.compare(Role::Decode, &pool, now);
                assert_eq!(taken.contains(&slow), look == LOOKS);
            }
            assert!(outliers.is_out(Role::Decode, &slow, now + FOR * times - Duration::from_millis(1)));
            now += FOR * times;
            assert!(!outliers.is_out(Role::Decode, &slow, now));
        }
    }

    #[test]
    fn whoever_is_a_little_slow_or_for_a_moment_or_among_few_stays() {
        let (mut outliers, now) = (Outliers::default(), Instant::now());
        let fast = pool(&[0.02; 4]);
        for _ in 0..3 {
            for _ in 1..LOOKS {
                assert!(outliers.compare(Role::Decode, &pool(&[0.02, 0.02, 0.3, 0.02]), now).is_empty());
            }
            assert!(outliers.compare(Role::Decode, &fast, now).is_empty());
        }
        for _ in 0..20 {
            assert!(outliers.compare(Role::Decode, &pool(&[0.02, 0.02, 0.05, 0.02]), now).is_empty());
            // Three times as slow, but who would notice a millisecond.
            assert!(outliers.compare(Role::Decode, &pool(&[0.0001, 0.0001, 0.001, 0.0001]), now).is_empty());
            assert!(outliers.compare(Role::Decode, &pool(&[0.02, 0.02, 9.0]), now).is_empty());
        }
    }

    proptest! {
        #[test]
        fn never_more_than_three_of_ten(looks in prop::collection::vec(prop::collection::vec(0.001f64..2.0, 1..14), 1..60)) {
            let (mut outliers, now) = (Outliers::default(), Instant::now());
            let most = looks.iter().map(Vec::len).max().unwrap();
            for seconds in looks {
                let padded: Vec<f64> = (0..most).map(|at| seconds[at % seconds.len()]).collect();
                let pool = pool(&padded);
                outliers.compare(Role::Decode, &pool, now);
                let out = pool.iter().filter(|(node, _)| outliers.is_out(Role::Decode, node, now)).count();
                prop_assert!(out * 10 <= pool.len() * 3);
            }
        }
    }
}
