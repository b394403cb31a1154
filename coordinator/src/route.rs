//! Which decode node, and which prefill nodes in which order.

use std::sync::{Arc, atomic::Ordering};

use baton_protocol::{Budgets, ErrorCode, Failure, NodeId, Request, Role, chain};
use tokio::time::{Instant, timeout_at};

use crate::{
    Shared,
    fleet::Node,
    policy::{Ask, Candidate, Prediction},
    prefix::Held,
};

/// Where one attempt goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) decode: Arc<Node>,
    /// Best first; empty: the decode node runs the prompt itself.
    pub(crate) prefill: Vec<Arc<Node>>,
    /// Prompt tokens that the first of them, or the decode node, has to compute.
    pub(crate) prefill_tokens: usize,
    /// What is foretold, by policies that foretell.
    pub(crate) prediction: Option<Prediction>,
}

/// Nodes looked at for one request.
struct Looking<'a> {
    shared: &'a Shared,
    request: &'a Request,
    /// What nodes hold of the prompt, looked up once for each page size.
    held: Vec<(usize, Held)>,
}

/// A route for the next attempt, away from the nodes to avoid if possible.
/// Waits a while for a node when none is ready.
pub(crate) async fn find(
    shared: &Shared,
    request: &Request,
    budgets: &Budgets,
    avoid: &[NodeId],
) -> Result<Route, Failure> {
    let mut changes = shared.fleet.changes();
    let patience = Instant::now() + shared.config.node_wait();
    loop {
        changes.borrow_and_update();
        if let Some(route) = choose(shared, request, budgets, avoid) {
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

fn choose(shared: &Shared, request: &Request, budgets: &Budgets, avoid: &[NodeId]) -> Option<Route> {
    let mut looking = Looking { shared, request, held: Vec::new() };
    let mut decode = shared.fleet.takers(&request.model, Role::Decode);
    if decode.iter().any(|node| !avoid.contains(node.id())) {
        decode.retain(|node| !avoid.contains(node.id()));
    }
    // What is read of a prompt's rows comes from who computes them, who is the decode node then.
    let prefill =
        if request.reads_prompt() { Vec::new() } else { shared.fleet.ready(&request.model, Role::Prefill) };
    let (to, from) = (looking.candidates(&decode), looking.candidates(&prefill));
    let pair = shared.policy.pair(&Ask {
        request,
        budgets,
        decode: &to,
        prefill: &from,
        turn: shared.turn.fetch_add(1, Ordering::Relaxed),
        local_below: shared.config.local_prefill_below_tokens,
    })?;
    let best = pair.prefill.iter().take(shared.config.max_prefill_candidates);
    let runs = pair.prefill.first().map_or(&to[pair.decode], |&first| &from[first]);
    Some(Route {
        prefill_tokens: request.tokens.len().saturating_sub(runs.cached_tokens),
        decode: Arc::clone(&decode[pair.decode]),
        prefill: best.map(|&node| Arc::clone(&prefill[node])).collect(),
        prediction: pair.prediction,
    })
}

// === impl Looking ===

impl Looking<'_> {
    fn candidates(&mut self, nodes: &[Arc<Node>]) -> Vec<Candidate> {
        nodes.iter().map(|node| self.candidate(node)).collect()
    }

    fn candidate(&mut self, node: &Node) -> Candidate {
        Candidate {
            info: node.info(),
            load: node.load(),
            in_flight: node.in_flight(),
            sent_prefill_tokens: node.sent_prefill_tokens(),
            cached_tokens: self.cached_tokens(node),
            roads: node.kv_paths(),
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
