//! Which of many nodes serve a request: a few of them are looked at, and a policy chooses among
//! those. Pure but for its count of requests; nodes are seen through [`Seen`].

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use baton_protocol::{Budgets, NodeInfo, Request, chain, wire::KvPath};
use tokio::time::Instant;

use crate::{
    CoordinatorConfig, Load, Sent,
    policy::{self, Ask, Candidate, Policy, Prediction},
    prefix::{Held, Holder, PrefixIndex},
};

/// What a router wants to know of a node.
pub trait Seen {
    /// Its latest description.
    fn info(&self) -> Arc<NodeInfo>;
    /// Its last report.
    fn load(&self) -> Load;
    /// What was sent to it and has not ended.
    fn sent(&self, now: Instant) -> Sent;
    /// How KV comes to it.
    fn roads(&self) -> Arc<[KvPath]>;
    /// Its part of the prefix index.
    fn prefixes(&self) -> &Holder;
}

/// Nodes of one role.
#[derive(Debug)]
pub struct Pool<N> {
    nodes: Vec<N>,
    /// Where those are that may hold prefixes, by their slot in the index.
    by_slot: HashMap<usize, usize>,
}

/// What is to be routed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What is asked.
    pub request: &'a Request,
    /// What its reader should wait at most.
    pub budgets: &'a Budgets,
    /// Now.
    pub now: Instant,
}

/// Indices into pools.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The decode node.
    pub decode: usize,
    /// Prefill nodes, best first; empty: the decode node runs the prompt itself.
    pub prefill: Vec<usize>,
    /// Prompt tokens that the first of them, or the decode node, has to compute.
    pub prefill_tokens: usize,
    /// What is foretold, by policies that foretell.
    pub prediction: Option<Prediction>,
}

/// Chooses nodes by a policy.
pub struct Router {
    policy: Box<dyn Policy>,
    knows_prefixes: bool,
    local_below: usize,
    max_prefill: usize,
    /// Counts the requests, for policies that take turns.
    turn: AtomicU64,
}

/// How reluctantly a node takes a request, 0 being not at all; none: it does not.
type Reluctance<'a, N> = &'a dyn Fn(&N) -> Option<u8>;

/// What nodes hold of a prompt, looked up once for each page size.
struct Looking<'a> {
    wanted: &'a Wanted<'a>,
    /// None: the policy does not want to know.
    index: Option<&'a PrefixIndex>,
    held: Vec<(usize, Held)>,
}

/// So many nodes of a role are looked at for a request, in turn, so that a choice costs the
/// same among thousands.
pub const LOOKED_AT: usize = 64;
/// And so many more that hold most of its prompt.
const HOLDERS: usize = 8;

// === impl Seen ===

/// A node that is shared is seen as it is.
macro_rules! seen_through {
    ($pointer:ident) => {
        impl<N: Seen> Seen for $pointer<N> {
            fn info(&self) -> Arc<NodeInfo> {
                N::info(self)
            }

            fn load(&self) -> Load {
                N::load(self)
            }

            fn sent(&self, now: Instant) -> Sent {
                N::sent(self, now)
            }

            fn roads(&self) -> Arc<[KvPath]> {
                N::roads(self)
            }

            fn prefixes(&self) -> &Holder {
                N::prefixes(self)
            }
        }
    };
}

seen_through!(Arc);
seen_through!(Rc);

// === impl Pool ===

impl<N: Seen> Pool<N> {
    /// Of these nodes.
    pub fn new(nodes: Vec<N>) -> Self {
        let by_slot = nodes.iter().enumerate().map(|(at, node)| (node.prefixes().slot(), at)).collect();
        Self { nodes, by_slot }
    }

    /// All of them.
    pub fn nodes(&self) -> &[N] {
        &self.nodes
    }

    /// Those to look at of the nodes that take the work, with the least reluctance that any of
    /// them has (none: it does not take it). The node whose turn it is stands where policies
    /// look for it.
    fn shortlist(&self, turn: u64, reluctance: Reluctance<'_, N>, held: Option<&Held>) -> Vec<usize> {
        let count = self.nodes.len();
        let start = start(count, turn);
        let order = || (start..count).chain(0..start);
        let takes = |at: &usize| reluctance(&self.nodes[*at]) == Some(0);
        let mut list: Vec<usize> = order().filter(takes).take(LOOKED_AT).collect();
        if list.is_empty() {
            let least = self.nodes.iter().filter_map(reluctance).min();
            let takes = |at: &usize| least.is_some() && reluctance(&self.nodes[*at]) == least;
            return order().filter(takes).take(LOOKED_AT).collect();
        }
        if count > LOOKED_AT {
            let holders = held.map(Held::holders).unwrap_or_default().into_iter();
            let known = holders.filter_map(|slot| self.by_slot.get(&slot).copied());
            let more: Vec<_> = known.filter(|at| !list.contains(at)).filter(takes).take(HOLDERS).collect();
            list.extend(more);
        }
        list
    }
}

/// Where the list begins. Of many nodes each turn looks at others, and in as many turns as there
/// are nodes each of them has its turn once.
fn start(count: usize, turn: u64) -> usize {
    if count <= LOOKED_AT {
        return 0;
    }
    let apart = (1..=LOOKED_AT).rev().find(|apart| gcd(*apart, count) == 1).unwrap_or(1);
    let turn = (turn % (count * LOOKED_AT) as u64) as usize;
    (turn * apart + count - turn % LOOKED_AT) % count
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

// === impl Router ===

impl Router {
    /// By the configured policy.
    pub fn new(config: &CoordinatorConfig) -> Self {
        Self {
            policy: policy::named(config.policy),
            knows_prefixes: config.policy.knows_prefixes(),
            local_below: config.local_prefill_below_tokens,
            max_prefill: config.max_prefill_candidates,
            turn: AtomicU64::new(0),
        }
    }

    /// Nodes for a request: of each pool those that take it with the least reluctance, 0 being
    /// none at all. None: no decode node does.
    pub fn choose<N: Seen>(
        &self,
        wanted: &Wanted<'_>,
        index: &PrefixIndex,
        (decode, to): (&Pool<N>, Reluctance<'_, N>),
        (prefill, from): (&Pool<N>, Reluctance<'_, N>),
    ) -> Option<Choice> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let index = self.knows_prefixes.then_some(index);
        let mut looking = Looking { wanted, index, held: Vec::new() };
        let (to, mut decoding) = looking.at(decode, to, turn);
        let (from, mut prefilling) = looking.at(prefill, from, turn);
        policy::suppose(&mut decoding, &mut prefilling);
        let pair = self.policy.pair(&Ask {
            request: wanted.request,
            budgets: wanted.budgets,
            decode: &decoding,
            prefill: &prefilling,
            turn,
            local_below: self.local_below,
        })?;
        let runs = pair.prefill.first().map_or(&decoding[pair.decode], |&first| &prefilling[first]);
        Some(Choice {
            prefill_tokens: wanted.request.tokens.len().saturating_sub(runs.cached_tokens),
            decode: to[pair.decode],
            prefill: pair.prefill.iter().take(self.max_prefill).map(|&node| from[node]).collect(),
            prediction: pair.prediction,
        })
    }
}

// === impl Looking ===

impl Looking<'_> {
    /// The nodes to look at, and what is seen of them.
    fn at<N: Seen>(
        &mut self,
        pool: &Pool<N>,
        reluctance: Reluctance<'_, N>,
        turn: u64,
    ) -> (Vec<usize>, Vec<Candidate>) {
        let list = match pool.nodes.first().filter(|_| self.index.is_some()) {
            Some(first) => {
                let page_tokens = page_tokens(&first.info());
                pool.shortlist(turn, reluctance, self.held(page_tokens))
            }
            None => pool.shortlist(turn, reluctance, None),
        };
        let candidates = list.iter().map(|&at| self.candidate(&pool.nodes[at])).collect();
        (list, candidates)
    }

    fn candidate(&mut self, node: &impl Seen) -> Candidate {
        let (info, now) = (node.info(), self.wanted.now);
        let page_tokens = page_tokens(&info);
        let pages = self.held(page_tokens).map_or(0, |held| held.pages(node.prefixes()));
        Candidate {
            load: node.load(),
            sent: node.sent(now),
            cached_tokens: pages * page_tokens,
            roads: node.roads(),
            info,
        }
    }

    /// What nodes hold of the prompt in pages of this size, if the policy wants to know.
    fn held(&mut self, page_tokens: usize) -> Option<&Held> {
        let index = self.index?;
        let known = self.held.iter().position(|(size, _)| *size == page_tokens);
        let at = known.unwrap_or_else(|| {
            let request = self.wanted.request;
            let blocks = chain(&request.tenant, page_tokens, &request.tokens);
            self.held.push((page_tokens, index.held(&blocks)));
            self.held.len() - 1
        });
        Some(&self.held[at].1)
    }
}

fn page_tokens(info: &NodeInfo) -> usize {
    info.kv.page_tokens.max(1) as usize
}

#[cfg(test)]
mod tests;
