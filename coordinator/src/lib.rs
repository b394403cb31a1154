//! Who serves this request, who is alive, what may wait.
//!
//! - [`dispatch`](Coordinator::dispatch): one request's life, top to bottom
//! - `lines`: a line for each model; `admission`: waits in it; [`places`]: how many run, how many wait, for how long; `queue`: in which order
//! - [`Wishes`]: what a client says of its patience; [`BudgetConfig`]: what holds if it says nothing
//! - `computing`, `suspects`: who computes a prompt, who broke off while it did, and what else was there
//! - `retries`, `quarantine`: how often what failed is tried again, and what never is
//! - `route`: which decode node, and which prefill nodes in which order
//! - [`router`]: which of many nodes are looked at
//! - [`policy`]: how nodes are chosen; pure
//! - [`prefix`]: which nodes hold which pages of KV
//! - `attempt`: one stream to one decode node
//! - `journal`: what the client has received, by choice and position
//! - [`Answer`]: the stream of events that the caller reads; dropping it cancels
//! - `fleet`: members from the registry, asked directly whether they are alive
//! - `node_client`: connections to nodes
//! - `model_text`: tokenizer and template, fetched from nodes by digest
//! - `steering`: what a person may see and do: drain, roles, cancel, [`Limits`], the `requests` in flight
//! - [`balancer`]: which roles nodes should have, and when that is worth a change
//! - [`metrics`]: what all of this counts; [`Pace`]: how long tokens took, for percentiles

mod admission;
mod answer;
mod attempt;
pub mod balancer;
mod budgets;
mod computing;
mod config;
mod dispatch;
mod ends;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod incidents;
mod journal;
mod limits;
mod lines;
pub mod metrics;
mod model_text;
mod node_client;
mod pace;
pub mod places;
pub mod policy;
pub mod prefix;
mod quarantine;
mod queue;
mod requests;
mod retries;
mod route;
pub mod router;
mod status;
mod steering;
mod suspects;
mod topology;
mod wishes;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use baton_protocol::{Failure, NodeInfo, Request, Role};
use baton_registry::Registry;
use baton_trust::Trust;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use admission::QueueStatus;
pub use answer::Answer;
pub use budgets::{BudgetClass, BudgetConfig};
pub use config::{BalancerMode, BalancingConfig, CoordinatorConfig, PolicyName};
pub use fleet::{Health, Ledger, Load, Outliers, Sent};
pub use incidents::{Incident, IncidentKind};
pub use limits::{Limits, LimitsError};
pub use metrics::CoordinatorMetrics;
pub use pace::{Pace, Times};
pub use queue::Claim;
pub use requests::{RequestStatus, Stage};
pub use status::{ClusterStatus, NodeStatus, ServedModel};
pub use steering::SteerError;
pub use topology::{HandoffStatus, Road, Verdict};
pub use wishes::Wishes;

use balancer::{Advice, Advised, Demands};
use fleet::Fleet;
use incidents::Incidents;
use lines::Lines;
use model_text::Texts;
use parking_lot::RwLock;
use quarantine::Quarantine;
use requests::Requests;
use router::Router;
use suspects::Suspects;

/// Takes requests and answers them through nodes; clones are the same coordinator.
#[derive(Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

/// The coordinator's background work. Dropping it ends that work.
pub struct CoordinatorTasks {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

struct Shared {
    config: CoordinatorConfig,
    registry: Arc<dyn Registry>,
    fleet: Arc<Fleet>,
    router: Router,
    lines: Lines,
    limits: RwLock<Limits>,
    requests: Arc<Requests>,
    /// This coordinator tells one node something at a time, so that two that are each other's last do not both go.
    steering: tokio::sync::Mutex<()>,
    demands: Demands,
    advised: Advised,
    quarantine: Quarantine,
    suspects: Arc<Suspects>,
    texts: Texts,
    incidents: Arc<Incidents>,
    metrics: CoordinatorMetrics,
}

// === impl Coordinator ===

impl Coordinator {
    /// Starts following the registry's members. Must be called within a tokio
    /// runtime, which runs the background work.
    pub fn new(
        config: CoordinatorConfig,
        registry: Arc<dyn Registry>,
        trust: Trust,
    ) -> (Self, CoordinatorTasks) {
        let metrics = CoordinatorMetrics::default();
        let incidents = Arc::<Incidents>::default();
        let fleet = Arc::new(Fleet::new(&config, trust, (metrics.clone(), Arc::clone(&incidents))));
        let mut tasks = CoordinatorTasks { stop: CancellationToken::new(), tasks: JoinSet::new() };
        tasks.tasks.spawn(Arc::clone(&fleet).run(registry.watch(), tasks.stop.clone()));
        let noted = Arc::clone(&incidents);
        tasks.tasks.spawn(incidents::watch(Arc::clone(&registry), noted, tasks.stop.clone()));
        let shared = Shared {
            router: Router::new(&config),
            lines: Lines::new(Limits::of(&config)),
            limits: RwLock::new(Limits::of(&config)),
            requests: Arc::default(),
            steering: tokio::sync::Mutex::default(),
            demands: Demands::default(),
            advised: Advised::default(),
            quarantine: Quarantine::default(),
            suspects: Arc::default(),
            texts: Texts::default(),
            incidents,
            config,
            registry,
            fleet,
            metrics,
        };
        let coordinator = Self { shared: Arc::new(shared) };
        tasks.tasks.spawn(balancer::run(coordinator.clone(), tasks.stop.clone()));
        (coordinator, tasks)
    }

    /// Admits the request, finds nodes for it and waits until one of them has
    /// taken it. Lost nodes are replaced inside the answer; dropping this
    /// future or the answer cancels the request.
    ///
    /// # Errors
    /// When the request was refused or has failed before any node took it.
    pub async fn dispatch(&self, request: Request, wishes: Wishes) -> Result<Answer, Failure> {
        dispatch::dispatch(&self.shared, request, wishes).await
    }

    /// Models that are to be served; the first is meant where none is named.
    pub fn expected(&self) -> &[String] {
        &self.shared.config.models
    }

    /// Models that some node announces or has announced, by name.
    pub fn models(&self) -> Vec<ServedModel> {
        self.shared.fleet.models()
    }

    /// Tokenizer, template and limits of a model, as bytes of its `ModelText`.
    ///
    /// # Errors
    /// When the model is unknown, or no node gave bytes of the right digest.
    pub async fn model_text(&self, model: &str) -> Result<Arc<[u8]>, Failure> {
        self.shared.texts.get(&self.shared.fleet, model).await
    }

    /// The nodes as this coordinator sees them.
    pub fn status(&self) -> ClusterStatus {
        status::of(&self.shared.fleet, self.shared.registry.health())
    }

    /// Coordinators that announce themselves, by name: none, if there is no other process.
    pub fn coordinators(&self) -> Vec<NodeInfo> {
        let members = self.shared.registry.watch();
        let routes = |info: &&NodeInfo| info.roles.contains(&Role::Coordinator);
        members.borrow().values().filter(routes).cloned().collect()
    }

    /// How long tokens have taken since it began.
    pub fn pace(&self) -> &Pace {
        self.shared.metrics.pace()
    }

    /// What the balancer advises, by model. Nothing while it is off, or knows too little.
    pub fn advice(&self) -> BTreeMap<String, Advice> {
        self.shared.advised.lock().clone()
    }

    /// What has happened of late, the newest first.
    pub fn incidents(&self) -> Vec<Incident> {
        self.shared.incidents.latest()
    }

    /// How KV comes from each prefill node to each decode node, and whether fast enough.
    pub fn roads(&self) -> Vec<Road> {
        topology::roads(&self.shared.fleet.nodes())
    }

    /// Handoffs on their way, the oldest first, as the decode nodes last said.
    pub fn handoffs(&self) -> Vec<HandoffStatus> {
        topology::handoffs(&self.shared.fleet.nodes())
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &CoordinatorMetrics {
        &self.shared.metrics
    }
}

// === impl CoordinatorTasks ===

impl CoordinatorTasks {
    /// Ends the background work and waits for it.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
