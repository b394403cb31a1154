//! Who can be given work: members from the registry, each asked directly.
//!
//! - [`Node`]: one incarnation of a node, its health, its load
//! - `checks`: the direct health check and the load stream of one node
//! - `prefixes`: what one node's prefix cache holds, kept in the index
//! - `outliers`: nodes that are slow, not dead
//! - `sent`: what was sent to a node and has not ended
//!
//! The registry says who announced itself; only the node itself says whether
//! it is alive. A node whose entry has vanished stays until it fails to
//! answer, so that a registry that loses its entries loses no nodes.

mod checks;
mod node;
mod outliers;
mod prefixes;
mod sent;

use std::{collections::BTreeMap, sync::Arc};

use baton_protocol::{NodeId, NodeInfo, Role};
use baton_registry::Members;
use baton_trust::{ReachError, Trust};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    node::Node,
    sent::{InFlight, SentPrefill},
};
pub use self::{
    node::{Health, Load},
    outliers::Outliers,
    sent::{Ledger, Sent},
};
use crate::{
    CoordinatorConfig, CoordinatorMetrics, IncidentKind, ServedModel, incidents::Incidents,
    node_client::NodeClient, prefix::PrefixIndex, router::Pool,
};

/// A model's nodes by role.
pub(crate) struct Pools {
    pub(crate) prefill: Pool<Arc<Node>>,
    pub(crate) decode: Pool<Arc<Node>>,
}

/// The known nodes. Locks are held for a few lines and never across an await.
pub(crate) struct Fleet {
    nodes: Mutex<BTreeMap<NodeId, Arc<Node>>>,
    /// Models by name, once announced, always listed: a model whose nodes are
    /// all gone, or have not answered yet, is unavailable, not unknown.
    models: Mutex<BTreeMap<String, ServedModel>>,
    /// By model, as long as nobody comes, goes or changes roles.
    pools: Mutex<BTreeMap<String, Arc<Pools>>>,
    prefixes: Arc<PrefixIndex>,
    outliers: Mutex<Outliers>,
    changed: watch::Sender<()>,
    config: CoordinatorConfig,
    trust: Trust,
    metrics: CoordinatorMetrics,
    incidents: Arc<Incidents>,
}

impl Fleet {
    pub(crate) fn new(
        config: &CoordinatorConfig,
        trust: Trust,
        (metrics, incidents): (CoordinatorMetrics, Arc<Incidents>),
    ) -> Self {
        Self {
            nodes: Mutex::default(),
            models: Mutex::default(),
            pools: Mutex::default(),
            prefixes: PrefixIndex::new(config.prefix_limits()),
            outliers: Mutex::default(),
            changed: watch::Sender::new(()),
            config: config.clone(),
            trust,
            metrics,
            incidents,
        }
    }

    /// Follows the members and asks each until `stop`.
    pub(crate) async fn run(self: Arc<Self>, mut members: watch::Receiver<Members>, stop: CancellationToken) {
        // Dropped with this future, which ends every check.
        let mut checks = JoinSet::new();
        let mut looks = tokio::time::interval(Outliers::INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.follow(&members.borrow_and_update().clone(), &mut checks);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = looks.tick() => self.look_for_outliers(),
                Ok(()) = members.changed() => {
                    let now = members.borrow_and_update().clone();
                    self.follow(&now, &mut checks);
                }
                Some(ended) = checks.join_next(), if !checks.is_empty() => match ended {
                    Ok(node) => {
                        self.remove(&node);
                        // It may have been announced again meanwhile.
                        let now = members.borrow().clone();
                        self.follow(&now, &mut checks);
                    }
                    Err(error) => tracing::error!(%error, "a node's checks ended badly"),
                },
            }
        }
        checks.shutdown().await;
    }

    /// All nodes, by name.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().values().cloned().collect()
    }

    /// What the nodes hold.
    pub(crate) fn prefixes(&self) -> &PrefixIndex {
        &self.prefixes
    }

    /// Models ever announced, by name.
    pub(crate) fn models(&self) -> Vec<ServedModel> {
        self.models.lock().values().cloned().collect()
    }

    /// Whether a model was ever announced.
    pub(crate) fn knows(&self, model: &str) -> bool {
        self.models.lock().contains_key(model)
    }

    /// A model ever announced.
    pub(crate) fn model(&self, name: &str) -> Option<ServedModel> {
        self.models.lock().get(name).cloned()
    }

    /// Nodes that get no new work since their steps take several times as long as those of others.
    pub(crate) fn is_outlier(&self, node: &NodeId) -> bool {
        let (outliers, now) = (self.outliers.lock(), Instant::now());
        [Role::Prefill, Role::Decode].iter().any(|role| outliers.is_out(*role, node, now))
    }

    /// Compares the nodes of each model and role by what the same work takes them.
    fn look_for_outliers(&self) {
        for model in self.models() {
            for role in [Role::Prefill, Role::Decode] {
                let nodes = self.ready(&model.name, role);
                for node in self.outliers.lock().look(role, &nodes, Instant::now()) {
                    self.metrics.ejected();
                    let words = format!("slow beside the others: it gets no new {role} work for a while");
                    tracing::warn!(%node, "{words}");
                    self.incidents.of(&node, IncidentKind::NodeSlow, words);
                }
            }
        }
    }

    /// Tells which nodes get no new work of a role since they are slow.
    pub(crate) fn outliers(&self, now: Instant) -> impl Fn(Role, &NodeId) -> bool + '_ {
        let outliers = self.outliers.lock();
        move |role, node| outliers.is_out(role, node, now)
    }

    /// Ready decode nodes of a model that are no outliers.
    pub(crate) fn in_use(&self, model: &str, now: Instant) -> Vec<Arc<Node>> {
        let mut nodes = self.ready(model, Role::Decode);
        let is_out = self.outliers(now);
        nodes.retain(|node| !is_out(Role::Decode, node.id()));
        nodes
    }

    /// A model's nodes by role, whatever their health.
    pub(crate) fn pools(&self, model: &str) -> Arc<Pools> {
        // Held while nodes are looked at, so that none that changes meanwhile is kept as it was.
        let mut pools = self.pools.lock();
        if let Some(known) = pools.get(model) {
            return Arc::clone(known);
        }
        let (nodes, text) = (self.nodes(), self.text_of(model));
        let of = |role| {
            let fits = |node: &&Arc<Node>| serves(&node.info(), model, &text, role);
            Pool::new(nodes.iter().filter(fits).cloned().collect())
        };
        let found = Arc::new(Pools { prefill: of(Role::Prefill), decode: of(Role::Decode) });
        if self.knows(model) {
            pools.insert(model.to_owned(), Arc::clone(&found));
        }
        found
    }

    /// Ready nodes with this model and role.
    pub(crate) fn ready(&self, model: &str, role: Role) -> Vec<Arc<Node>> {
        let text = self.text_of(model);
        let fits =
            |node: &&Arc<Node>| node.health() == Health::Ready && serves(&node.info(), model, &text, role);
        self.nodes.lock().values().filter(fits).cloned().collect()
    }

    /// Digest of the tokenizer and template by which prompts of a model become tokens.
    fn text_of(&self, model: &str) -> String {
        self.models.lock().get(model).map(|model| model.text_digest.clone()).unwrap_or_default()
    }

    /// Told whenever a node's health, roles or presence changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A node said who it is now.
    pub(crate) fn heard(&self, node: &Node, info: NodeInfo) {
        let health = Health::from(info.state);
        // Where it is, the registry says.
        let info = NodeInfo { control_addr: node.info().control_addr.clone(), ..info };
        let Some(before) = node.set_info(info.clone()) else { return };
        let roles_changed = info.roles != before.roles;
        if roles_changed {
            tracing::info!(node = %info.id, roles = ?info.roles, epoch = info.epoch, "node roles");
            let roles: Vec<_> = info.roles.iter().map(ToString::to_string).collect();
            self.incidents.of(&info.id, IncidentKind::Roles, format!("has the roles {}", roles.join(", ")));
            // They must stand in its certificate too: the next check will see.
            if let Ok(client) = self.dial(&info) {
                node.set_client(client);
            }
        }
        self.learn(&info);
        if checks::set(self, node, health) || roles_changed {
            self.tell();
        }
    }

    fn follow(self: &Arc<Self>, members: &Members, checks: &mut JoinSet<Arc<Node>>) {
        let known = self.nodes();
        for node in &known {
            node.set_announced(members.contains_key(node.id()));
        }
        for info in members.values() {
            let works = info.roles.contains(&Role::Prefill) || info.roles.contains(&Role::Decode);
            let same = known.iter().find(|node| node.id() == &info.id).is_some_and(|node| node.is(info));
            if works && !same {
                self.learn(info);
                self.add(info, checks);
            }
        }
        self.tell();
    }

    fn add(self: &Arc<Self>, info: &NodeInfo, checks: &mut JoinSet<Arc<Node>>) {
        let client = match self.dial(info) {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(node = %info.id, %error, "node ignored");
                return;
            }
        };
        let node = Arc::new(Node::new(info.clone(), client, self.prefixes.join()));
        tracing::info!(node = %info.id, incarnation = info.incarnation.0, "node joining");
        if let Some(before) = self.nodes.lock().insert(info.id.clone(), Arc::clone(&node)) {
            before.replace();
        }
        checks.spawn(checks::run(Arc::clone(self), node));
    }

    fn dial(&self, info: &NodeInfo) -> Result<NodeClient, ReachError> {
        NodeClient::new(&self.trust, &info.control_addr, &info.roles)
    }

    /// Takes out a node whose checks have ended, unless it was replaced already.
    fn remove(&self, node: &Arc<Node>) {
        let mut nodes = self.nodes.lock();
        if nodes.get(node.id()).is_some_and(|known| Arc::ptr_eq(known, node)) {
            nodes.remove(node.id());
            drop(nodes);
            self.measure_pools();
            self.pools.lock().clear();
            self.outliers.lock().forget(node.id());
            tracing::info!(node = %node.id(), "node left");
            self.incidents.of(node.id(), IncidentKind::NodeLeft, "has left the cluster");
        }
    }

    /// Lists a node's model, unless others serve one of this name with another text: a node gets no
    /// tokens but those of its own tokenizer.
    fn learn(&self, info: &NodeInfo) {
        let text = self.text_of(&info.model);
        let serve = |node: &Arc<Node>| {
            let other = node.info();
            let is_same = other.model == info.model && other.text_digest == text;
            node.health() == Health::Ready && is_same && other.id != info.id
        };
        let is_new = text != info.text_digest;
        if is_new && self.nodes().iter().any(serve) {
            return;
        }
        let mut models = self.models.lock();
        let known = models.get(&info.model).map(|model| model.pool_tokens);
        let model = ServedModel {
            name: info.model.clone(),
            text_digest: info.text_digest.clone(),
            context_tokens: info.context_tokens,
            pool_tokens: known.unwrap_or_else(|| pool_tokens(info)),
            fingerprint: info.model_fingerprint.clone(),
        };
        models.insert(model.name.clone(), model);
        drop(models);
        if is_new {
            self.pools.lock().clear();
        }
    }

    /// Finds out what fits on every node of each model. Without a node it stays as it was.
    fn measure_pools(&self) {
        let nodes = self.nodes();
        for model in self.models.lock().values_mut() {
            let infos = nodes.iter().map(|node| node.info()).filter(|info| info.model == model.name);
            model.pool_tokens = infos.map(|info| pool_tokens(&info)).min().unwrap_or(model.pool_tokens);
        }
    }

    fn tell(&self) {
        self.measure_pools();
        self.pools.lock().clear();
        self.metrics.set_nodes(self.nodes.lock().values().map(|node| node.health()));
        self.changed.send_replace(());
    }
}

/// Whether a node does this work for a model whose text has this digest.
fn serves(info: &NodeInfo, model: &str, text: &str, role: Role) -> bool {
    info.model == model && info.text_digest == text && info.roles.contains(&role)
}

/// What the pages of a node hold, in tokens.
fn pool_tokens(info: &NodeInfo) -> u32 {
    u32::try_from(info.pages.saturating_mul(u64::from(info.kv.page_tokens))).unwrap_or(u32::MAX)
}
