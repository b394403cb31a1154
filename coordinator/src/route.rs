//! Which decode node, and which prefill nodes in which order.

use std::sync::{Arc, atomic::Ordering};

use baton_protocol::{ErrorCode, Failure, NodeId, NodeInfo, Request, Role, chain};
use tokio::time::{Instant, timeout_at};

use crate::{
    CoordinatorConfig, Shared,
    fleet::Node,
    policy::{Candidate, Work},
    prefix::Held,
};

/// Where one attempt goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) decode: Arc<Node>,
    /// Best first; empty: the decode node runs the prompt itself.
    pub(crate) prefill: Vec<Arc<Node>>,
}

/// Nodes ranked for one request.
struct Ranking<'a> {
    shared: &'a Shared,
    request: &'a Request,
    turn: u64,
    /// What nodes hold of the prompt, looked up once for each page size.
    held: Vec<(usize, Held)>,
}

/// A route for the next attempt, away from the nodes to avoid if possible.
/// Waits a while for a node when none is ready.
pub(crate) async fn find(shared: &Shared, request: &Request, avoid: &[NodeId]) -> Result<Route, Failure> {
    let mut changes = shared.fleet.changes();
    let patience = Instant::now() + shared.config.node_wait();
    loop {
        changes.borrow_and_update();
        if let Some(route) = choose(shared, request, avoid) {
            return Ok(route);
        }
        let known = shared.fleet.models();
        if !known.is_empty() && known.iter().all(|model| model.name != request.model) {
            return Err(Failure::new(ErrorCode::UnknownModel, format!("no model {:?}", request.model)));
        }
        if timeout_at(patience, changes.changed()).await.is_err() {
            let failure = Failure::new(ErrorCode::Unavailable, "no decode node is ready for this model");
            return Err(Failure { retry_after: Some(shared.config.node_wait()), ..failure });
        }
    }
}

fn choose(shared: &Shared, request: &Request, avoid: &[NodeId]) -> Option<Route> {
    let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
    let mut ranking = Ranking { shared, request, turn, held: Vec::new() };
    let decode = ranking.rank(Work::Decode, &shared.fleet.ready(&request.model, Role::Decode));
    let fresh = decode.iter().find(|node| !avoid.contains(node.id()));
    let decode = Arc::clone(fresh.or(decode.first())?);
    let decode_info = decode.info();
    let lacking = request.tokens.len().saturating_sub(ranking.cached_tokens(&decode));
    if prefills_locally(&shared.config, &decode_info, lacking) {
        return Some(Route { decode, prefill: Vec::new() });
    }
    let mut prefill = shared.fleet.ready(&request.model, Role::Prefill);
    prefill.retain(|node| node.id() != decode.id() && node.info().can_hand_off_to(&decode_info));
    let mut prefill = ranking.rank(Work::Prefill, &prefill);
    prefill.truncate(shared.config.max_prefill_candidates);
    Some(Route { decode, prefill })
}

/// Whether no handoff is wanted: a node with both roles prefills its own
/// requests, since its engine is the one that would do it anyway.
fn prefills_locally(config: &CoordinatorConfig, decode: &NodeInfo, lacking_tokens: usize) -> bool {
    decode.roles.contains(&Role::Prefill) || lacking_tokens < config.local_prefill_below_tokens
}

// === impl Ranking ===

impl Ranking<'_> {
    /// The nodes, best first.
    fn rank(&mut self, work: Work, nodes: &[Arc<Node>]) -> Vec<Arc<Node>> {
        let candidates: Vec<_> = nodes.iter().map(|node| self.candidate(node)).collect();
        let order = self.shared.policy.rank(work, self.request, &candidates, self.turn);
        order.into_iter().filter_map(|index| nodes.get(index).cloned()).collect()
    }

    fn candidate(&mut self, node: &Node) -> Candidate {
        Candidate {
            info: node.info(),
            load: node.load(),
            in_flight: node.in_flight(),
            sent_prefill_tokens: node.sent_prefill_tokens(),
            cached_tokens: self.cached_tokens(node),
        }
    }

    /// Tokens of the prompt in a node's prefix cache, as far as the policy wants to know.
    fn cached_tokens(&mut self, node: &Node) -> usize {
        if !self.shared.config.policy.knows_prefixes() {
            return 0;
        }
        let page_tokens = node.info().kv.page_tokens.max(1) as usize;
        let known = self.held.iter().position(|(size, _)| *size == page_tokens);
        let at = known.unwrap_or_else(|| {
            let blocks = chain(&self.request.tenant, page_tokens, &self.request.tokens);
            self.held.push((page_tokens, self.shared.fleet.prefixes().held(&blocks)));
            self.held.len() - 1
        });
        self.held[at].1.pages(node.prefixes()) * page_tokens
    }
}
