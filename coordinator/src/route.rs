//! Which decode node, and which prefill nodes in which order.

use std::sync::Arc;

use baton_protocol::{Budgets, ErrorCode, Failure, NodeId, NodeInfo, Request, Role, wire::KvPath};
use tokio::time::{Instant, timeout_at};

use crate::{
    Load, Sent, Shared,
    fleet::{Health, Node},
    policy::Prediction,
    prefix::Holder,
    router::{self, Seen},
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
    let pools = shared.fleet.pools(&request.model);
    let is_out = shared.fleet.outliers(Instant::now());
    // Those that failed this request are second to those that are slow.
    let decodes = |node: &Arc<Node>| {
        let takes = takes(node, Role::Decode)
            && fingerprint.is_none_or(|begun| node.info().model_fingerprint == begun);
        takes.then(|| 2 * u8::from(is_out(Role::Decode, node.id())) + u8::from(avoid.contains(node.id())))
    };
    // What is read of a prompt's rows comes from who computes them, who is the decode node then.
    let reads = request.reads_prompt();
    let prefills = |node: &Arc<Node>| {
        (!reads && takes(node, Role::Prefill)).then(|| u8::from(is_out(Role::Prefill, node.id())))
    };
    let (to, from) = (&pools.decode, &pools.prefill);
    let asked = router::Wanted { request, budgets, now: Instant::now() };
    let choice = shared.router.choose(&asked, shared.fleet.prefixes(), (to, &decodes), (from, &prefills))?;
    Some(Route {
        decode: Arc::clone(&to.nodes()[choice.decode]),
        prefill: choice.prefill.iter().map(|&node| Arc::clone(&from.nodes()[node])).collect(),
        prefill_tokens: choice.prefill_tokens,
        prediction: choice.prediction,
    })
}

fn takes(node: &Node, role: Role) -> bool {
    node.health() == Health::Ready && node.info().roles.contains(&role)
}

impl Seen for Node {
    fn info(&self) -> Arc<NodeInfo> {
        Self::info(self)
    }

    fn load(&self) -> Load {
        Self::load(self)
    }

    fn sent(&self, _now: Instant) -> Sent {
        Self::sent(self)
    }

    fn roads(&self) -> Arc<[KvPath]> {
        self.kv_paths()
    }

    fn prefixes(&self) -> &Holder {
        Self::prefixes(self)
    }
}
