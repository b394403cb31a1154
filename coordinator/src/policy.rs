//! How nodes are chosen. Pure: no I/O, no clock, no randomness.
//!
//! - [`Policy`]: the trait; `round_robin`, `least_loaded` and `prefix_aware` rank each side by itself
//! - [`Predicted`]: pairs by what is foretold of them
//! - `predict`: what a request would see on given nodes; [`suppose`]: of nodes that have said nothing yet

mod predict;
mod predicted;
mod unknown;

use std::sync::Arc;

use baton_protocol::{Budgets, NodeInfo, Request, Role, wire::KvPath};

pub use self::{predict::Prediction, predicted::Predicted, unknown::suppose};
use crate::{Load, PolicyName, Sent};

/// What a node is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Generate tokens.
    Decode,
    /// Run the prompt.
    Prefill,
}

/// A ready node that can do the work.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who it is.
    pub info: Arc<NodeInfo>,
    /// Its last report, up to one interval old.
    pub load: Load,
    /// What this coordinator has sent to it and has not heard the end of.
    pub sent: Sent,
    /// Tokens of this prompt in its prefix cache, up to one report old; 0 for
    /// policies that do not know prefixes.
    pub cached_tokens: usize,
    /// How KV comes to it, by its last report.
    pub roads: Arc<[KvPath]>,
}

/// A request, and the nodes that could serve it.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What is asked.
    pub request: &'a Request,
    /// What its reader should wait at most.
    pub budgets: &'a Budgets,
    /// Ready nodes that generate tokens.
    pub decode: &'a [Candidate],
    /// Ready nodes that run prompts.
    pub prefill: &'a [Candidate],
    /// Counts the requests, to break ties.
    pub turn: u64,
    /// Prompts of which the decode node lacks fewer tokens are prefilled there,
    /// by policies that do not foretell what that costs.
    pub local_below: usize,
}

/// Indices into the nodes of an [`Ask`].
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The decode node.
    pub decode: usize,
    /// Prefill nodes, best first; empty: the decode node runs the prompt itself.
    pub prefill: Vec<usize>,
    /// What is foretold of it with the first of them, by policies that foretell.
    pub prediction: Option<Prediction>,
}

/// Ranks nodes for a request.
pub trait Policy: Send + Sync + 'static {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// Indices into `nodes`, best first, each once. `turn` counts the
    /// requests; use it to break ties.
    fn rank(&self, work: Work, request: &Request, nodes: &[Candidate], turn: u64) -> Vec<usize>;

    /// The nodes to serve a request, none if there is no decode node. Unless a
    /// policy says otherwise: the best decode node, then the best prefill nodes
    /// for it. A node with both roles prefills its own requests then, since its
    /// engine is the one that would do it anyway.
    fn pair(&self, ask: &Ask<'_>) -> Option<Pair> {
        let decode = *self.rank(Work::Decode, ask.request, ask.decode, ask.turn).first()?;
        let node = &ask.decode[decode];
        let lacking = ask.request.tokens.len().saturating_sub(node.cached_tokens);
        let mut prefill = Vec::new();
        if !node.info.roles.contains(&Role::Prefill) && lacking >= ask.local_below {
            prefill = self.rank(Work::Prefill, ask.request, ask.prefill, ask.turn);
            prefill.retain(|&from| node.takes_from(&ask.prefill[from]));
        }
        Some(Pair { decode, prefill, prediction: None })
    }
}

/// Each node in turn.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

/// The node with the least to do: sequences for decode, waiting prompt tokens for prefill.
#[derive(Clone, Copy, Debug)]
pub struct LeastLoaded;

/// The node with the least to do, this prompt included, as far as the node does not hold it.
#[derive(Clone, Copy, Debug)]
pub struct PrefixAware;

/// The policy of this name.
pub fn named(name: PolicyName) -> Box<dyn Policy> {
    match name {
        PolicyName::RoundRobin => Box::new(RoundRobin),
        PolicyName::LeastLoaded => Box::new(LeastLoaded),
        PolicyName::PrefixAware => Box::new(PrefixAware),
        PolicyName::Predicted => Box::new(Predicted),
    }
}

// === impl RoundRobin ===

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn rank(&self, _work: Work, _request: &Request, nodes: &[Candidate], turn: u64) -> Vec<usize> {
        in_turn(nodes.len(), turn)
    }
}

// === impl LeastLoaded ===

impl Policy for LeastLoaded {
    fn name(&self) -> &'static str {
        "least_loaded"
    }

    fn rank(&self, work: Work, _request: &Request, nodes: &[Candidate], turn: u64) -> Vec<usize> {
        let mut order = in_turn(nodes.len(), turn);
        order.sort_by_key(|&index| match work {
            Work::Decode => nodes[index].sequences(),
            Work::Prefill => nodes[index].prefill_tokens(),
        });
        order
    }
}

// === impl PrefixAware ===

/// A running answer counts as so many prompt tokens: about as many as an answer of a chat has.
const SEQUENCE_TOKENS: u64 = 128;

impl Policy for PrefixAware {
    fn name(&self) -> &'static str {
        "prefix_aware"
    }

    fn rank(&self, work: Work, request: &Request, nodes: &[Candidate], turn: u64) -> Vec<usize> {
        let mut order = in_turn(nodes.len(), turn);
        order.sort_by_key(|&index| {
            let node = &nodes[index];
            let prompt =
                node.prefill_tokens() + request.tokens.len().saturating_sub(node.cached_tokens) as u64;
            match work {
                Work::Decode => prompt + SEQUENCE_TOKENS * node.sequences(),
                Work::Prefill => prompt,
            }
        });
        order
    }
}

// === impl Candidate ===

// Our own count is exact and knows only us. A report knows of others and lags
// behind: what is in it beyond what we had sent by then is theirs.
impl Candidate {
    /// Answers that it has to give.
    fn sequences(&self) -> u64 {
        let reported = u64::from(self.load.running + self.load.waiting);
        self.sent.requests + reported.saturating_sub(self.load.sent.requests)
    }

    /// Answers that it gives now: those whose prompts run elsewhere come later.
    fn generating(&self) -> u64 {
        let reported = u64::from(self.load.running);
        self.sent.generating + reported.saturating_sub(self.load.sent.generating)
    }

    /// Prompt tokens that it has to compute.
    fn prefill_tokens(&self) -> u64 {
        let reported = self.load.waiting_prefill_tokens;
        self.sent.prompt_tokens + reported.saturating_sub(self.load.sent.prompt_tokens)
    }

    /// Whether KV of another node can come to it.
    fn takes_from(&self, other: &Self) -> bool {
        self.info.id != other.info.id && other.info.can_hand_off_to(&self.info)
    }

    /// Measured rate of the road from another node; where nothing has come over
    /// it yet, that of the slowest of its roads, if there is one.
    fn bytes_per_second_from(&self, other: &Self) -> Option<f64> {
        let measured = || self.roads.iter().filter(|road| road.bytes_per_second > 0.0);
        let own = measured().find(|road| road.prefill_node == other.info.id.0);
        let rates = measured().map(|road| road.bytes_per_second);
        own.map_or_else(|| rates.min_by(f64::total_cmp), |road| Some(road.bytes_per_second))
    }
}

/// All indices, starting with the one whose turn it is.
fn in_turn(len: usize, turn: u64) -> Vec<usize> {
    let start = turn.checked_rem(len as u64).unwrap_or(0) as usize;
    (start..len).chain(0..start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{node_info, request};

    fn candidate(name: &str, running: u32, waiting_prefill_tokens: u64) -> Candidate {
        Candidate {
            info: Arc::new(node_info(name, &[])),
            load: Load { running, waiting_prefill_tokens, ..Load::default() },
            sent: Sent::default(),
            cached_tokens: 0,
            roads: [].into(),
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let nodes = ["a", "b", "c"].map(|name| candidate(name, 0, 0));
        let rank = |turn| RoundRobin.rank(Work::Decode, &request(1), &nodes, turn);
        assert_eq!([rank(0), rank(1), rank(5)], [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert!(RoundRobin.rank(Work::Decode, &request(1), &[], 3).is_empty());
    }

    #[test]
    fn least_loaded_looks_at_the_work_at_hand_and_breaks_ties_in_turn() {
        let mut nodes = [candidate("a", 5, 0), candidate("b", 2, 900), candidate("c", 2, 100)];
        let rank = |work, nodes: &[Candidate], turn| LeastLoaded.rank(work, &request(1), nodes, turn);
        assert_eq!(rank(Work::Decode, &nodes, 0), [1, 2, 0]);
        assert_eq!(rank(Work::Decode, &nodes, 2), [2, 1, 0]);
        assert_eq!(rank(Work::Prefill, &nodes, 0), [0, 2, 1]);
        nodes[1].sent.requests = 9;
        nodes[0].sent.prompt_tokens = 200;
        assert_eq!(rank(Work::Decode, &nodes, 0), [2, 0, 1]);
        assert_eq!(rank(Work::Prefill, &nodes, 0), [2, 0, 1]);
    }

    #[test]
    fn prefix_aware_takes_what_is_cached_off_the_work() {
        let long = Request { tokens: vec![0; 1000], ..request(1) };
        let rank = |work, nodes: &[Candidate]| PrefixAware.rank(work, &long, nodes, 0);
        let mut nodes = [candidate("a", 0, 0), candidate("b", 0, 0), candidate("c", 0, 0)];
        nodes[1].cached_tokens = 900;
        nodes[2].cached_tokens = 64;
        assert_eq!(rank(Work::Decode, &nodes), [1, 2, 0]);
        assert_eq!(rank(Work::Prefill, &nodes), [1, 2, 0]);
        // A cache is worth its tokens and no more.
        nodes[1].load.waiting_prefill_tokens = 850;
        nodes[0].sent.prompt_tokens = 20;
        assert_eq!(rank(Work::Prefill, &nodes), [2, 1, 0]);
        nodes[1].load = Load { running: 8, ..Load::default() };
        assert_eq!(rank(Work::Decode, &nodes), [2, 0, 1]);
        // One that holds more than was asked for is not worth more.
        nodes[0].cached_tokens = 2000;
        nodes[2].cached_tokens = 1000;
        assert_eq!(rank(Work::Prefill, &nodes), [2, 0, 1]);
    }
}
