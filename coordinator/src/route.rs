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

/// What is to be routed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) request: &'a Request,
    pub(crate) budgets: &'a Budgets,
    /// Decode nodes to stay away from if possible.
    pub(crate) avoid: &'a [NodeId],
    /// Of the model that has begun the answer: another one of its name would go on differently.
    pub(crate) fingerprint: Option<&'a str>,
}

/// Nodes looked at for one request.
struct Looking<'a> {
    shared: &'a Shared,
    request: &'a Request,
    /// What nodes hold of the prompt, looked up once for each page size.
    held: Vec<(usize, Held)>,
}

/// Waits a while for a model that no node has announced yet.
pub(crate) async fn known(shared: &Shared, model: &str, deadline: Instant) -> Result<(), Failure> {
    let mut changes = shared.fleet.changes();
    let patience = deadline.min(Instant::now() + shared.config.node_wait());
    loop {
        changes.borrow_and_update();
        if shared.fleet.knows(model) {
            return Ok(());
        }
        let is_expected = shared.config.models.iter().any(|name| name == model);
        if !is_expected && !shared.fleet.models().is_empty() {
            return Err(Failure::new(ErrorCode::UnknownModel, format!("no model {model:?}")));
        }
        if timeout_at(patience, changes.changed()).await.is_err() {
            return Err(unavailable(shared, format!("no node has announced model {model:?}")));
        }
    }
}

/// A route for the next attempt. Waits a while for a node when none is ready.
pub(crate) async fn find(shared: &Shared, wanted: &Wanted<'_>) -> Result<Route, Failure> {
    let mut changes = shared.fleet.changes();
    let patience = Instant::now() + shared.config.node_wait();
    loop {
        changes.borrow_and_update();
        if let Some(route) = choose(shared, wanted) {
            return Ok(route);
        }
        if timeout_at(patience, changes.changed()).await.is_err() {
            let model = &wanted.request.model;
            return Err(unavailable(shared, format!("no decode node of model {model:?} is ready")));
        }
    }
}

fn unavailable(shared: &Shared, why: String) -> Failure {
    Failure { retry_after: Some(shared.config.node_wait()), ..Failure::new(ErrorCode::Unavailable, why) }
}

fn choose(shared: &Shared, wanted: &Wanted<'_>) -> Option<Route> {
    let Wanted { request, budgets, avoid, fingerprint } = *wanted;
    let mut looking = Looking { shared, request, held: Vec::new() };
    let mut decode = shared.fleet.takers(&request.model, Role::Decode);
    decode.retain(|node| fingerprint.is_none_or(|begun| node.info().model_fingerprint == begun));
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
            sent: node.sent(),
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
