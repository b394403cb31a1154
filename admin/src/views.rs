//! What the admin API writes and reads. Times are milliseconds unless a name says otherwise.

use std::{collections::BTreeMap, time::Duration};

use baton_coordinator::{
    BudgetClass, BudgetConfig, ClusterStatus, Limits, Load, NodeStatus, QueueStatus, RequestStatus, Stage,
    balancer,
};
use baton_protocol::{NodeId, PageCounts, StepCost, wire};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The cluster in a few numbers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// Whether a request could be served.
    pub ready: bool,
    /// How the registry is.
    pub registry: String,
    /// Nodes by health.
    pub nodes: BTreeMap<String, usize>,
}

/// A node as this coordinator sees it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// What it admits.
    pub roles: Vec<String>,
    /// Counts role changes.
    pub epoch: u64,
    /// Which run of it this is; another one after each start.
    pub incarnation: u64,
    /// `joining`, `ready`, `draining` or `lost`, by direct checks.
    pub health: String,
    /// Whether it gets no new work for a while, since it is slow beside the others.
    pub slow: bool,
    /// Whether the registry lists it.
    pub announced: bool,
    /// What it serves.
    pub model: String,
    /// Its gRPC address.
    pub control_addr: String,
    /// Requests of this coordinator that decode on it.
    pub in_flight: usize,
    /// Its last report.
    pub load: NodeLoad,
    /// Pages of its pool.
    pub pages: Pages,
    /// What its steps cost, as it has learnt.
    pub step_model: StepModel,
    /// How KV comes to it.
    pub links: Vec<Link>,
    /// Pages of its prefix cache that are in the index.
    pub indexed_pages: u64,
}

/// What a node has to do.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeLoad {
    /// Answers in its batch.
    pub running: u32,
    /// Answers and prompts that wait.
    pub waiting: u32,
    /// Prompt tokens to be computed.
    pub waiting_prefill_tokens: u64,
    /// Tokens that running answers attend to.
    pub running_context_tokens: u64,
    /// Prompt tokens that a step takes now; 0: unknown.
    pub step_prompt_tokens: u64,
    /// Answers and prompts of a role that it no longer has.
    pub left_over: u32,
}

/// Pages by state: the first six sum to the pool.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Pages {
    /// Empty.
    pub free: u64,
    /// Held by the prefix cache alone.
    pub cached: u64,
    /// Of running sequences.
    pub running: u64,
    /// A handoff writes them.
    pub receiving: u64,
    /// A handoff reads them.
    pub sending: u64,
    /// Of a broken handoff, until nothing can write them any more.
    pub quarantined: u64,
    /// The pool.
    pub total: u64,
    /// Promised to handoffs that have not begun.
    pub promised: u64,
}

/// Seconds of steps; a part is null until enough of them have run.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepModel {
    /// Of steps with prompts; units are prompt tokens.
    pub prefill: Option<Cost>,
    /// Of steps in which answers go on; units are answers.
    pub decode: Option<Cost>,
}

/// A step takes `base + unit * units + context * contexts` seconds.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// Whatever it computes.
    pub base: f64,
    /// Each unit.
    pub unit: f64,
    /// Each token that a unit attends to.
    pub context: f64,
}

/// How KV comes from a prefill node.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// The prefill node.
    pub from: String,
    /// The transport in use.
    pub transport: String,
    /// As measured; null: not yet.
    pub bytes_per_second: Option<f64>,
    /// Which transport was wanted, and why it is not in use.
    pub fallback: Option<String>,
}

/// A request in flight.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// By which it can be cancelled.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// What it asks for.
    pub model: String,
    /// `queued`, `routed`, `prefill` or `decode`.
    pub stage: String,
    /// Its place in line.
    pub priority: i32,
    /// Since it came.
    pub age_ms: f64,
    /// Until it must have ended.
    pub left_ms: f64,
    /// Its budget for the first token.
    pub ttft_ms: f64,
    /// Its budget between tokens.
    pub itl_ms: f64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens of its answers so far.
    pub tokens: u32,
    /// Attempts begun.
    pub attempts: u32,
    /// Where it decodes.
    pub decode: Option<String>,
    /// Where its prompt was sent first; null: to the decode node.
    pub prefill: Option<String>,
}

/// Who runs and who waits.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// Which line: each model has its own.
    pub model: String,
    /// Requests with a place.
    pub running: usize,
    /// Requests without.
    pub waiting: usize,
    /// Those, by tenant.
    pub waiting_by_tenant: BTreeMap<String, usize>,
    /// Between two places that come free while somebody waits, of late.
    pub interval_ms: Option<f64>,
}

/// Limits in force, and a change of them: all of them, with the revision that they replace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsView {
    /// Counts changes.
    pub revision: u64,
    /// Requests of a model running at once.
    pub max_running: usize,
    /// Requests of a model waiting for a place beyond those.
    pub max_waiting: usize,
    /// How long a request may wait for a place.
    pub max_wait_ms: u64,
    /// Budget for the first token of requests that bring none.
    pub ttft_ms: u64,
    /// The same between tokens.
    pub itl_ms: u64,
    /// Whether decode nodes keep `itl_ms` for requests that bring none.
    pub kept_by_nodes: bool,
    /// Requests for which something else holds: the first class of a request that names a value counts.
    #[serde(default)]
    pub classes: Vec<ClassView>,
}

/// Requests of a model, or of some priorities, and their budgets; what is null is any, or as usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClassView {
    /// Their model.
    pub model: Option<String>,
    /// Their least priority.
    pub min_priority: Option<i32>,
    /// Their greatest priority.
    pub max_priority: Option<i32>,
    /// Budget for the first token.
    pub ttft_ms: Option<u64>,
    /// The same between tokens.
    pub itl_ms: Option<u64>,
    /// Whether decode nodes keep `itl_ms`.
    pub kept_by_nodes: Option<bool>,
}

/// The index of prefix caches.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct PrefixIndex {
    /// Pages of all nodes; a page on two nodes counts twice.
    pub pages: u64,
    /// Different sets of nodes that hold a page.
    pub sets: usize,
    /// Pages by node.
    pub by_node: BTreeMap<String, u64>,
}

/// What came of flushing the prefix caches.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Flushed {
    /// Nodes that forgot what theirs held.
    pub nodes: Vec<String>,
}

/// What the balancer foretells of a model, and advises.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Advice {
    /// Which model.
    pub model: String,
    /// Requests a second, refused ones included.
    pub requests_per_second: f64,
    /// Tokens of a prompt.
    pub prompt_tokens: f64,
    /// Those of them that prefill nodes compute.
    pub computed_tokens: f64,
    /// Tokens of the answers to a request.
    pub answer_tokens: f64,
    /// Nodes that run prompts now.
    pub prefill: usize,
    /// Nodes that generate tokens now.
    pub decode: usize,
    /// Share of requests whose first token is foretold to come in time with these nodes.
    pub ttft_attained: f64,
    /// Share of requests whose tokens are foretold to follow each other in time.
    pub itl_attained: f64,
    /// Work over what the busier role can do; beyond 1 requests pile up.
    pub pressure: f64,
    /// Nodes that would keep the budgets: for autoscalers.
    pub wanted_prefill: usize,
    /// The same for decode.
    pub wanted_decode: usize,
    /// The role that a node of the other one should get; null: neither.
    pub gains: Option<String>,
}

/// How a node is drained.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// Also when it is the last decode node of its model.
    pub force: bool,
}

/// Which work a node gets.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// `prefill`, `decode`, or both.
    pub roles: Vec<String>,
    /// Also when it is the last node of its model with a role that it loses.
    #[serde(default)]
    pub force: bool,
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn name(node: NodeId) -> String {
    node.0
}

impl From<&ClusterStatus> for Cluster {
    fn from(status: &ClusterStatus) -> Self {
        let mut nodes = BTreeMap::new();
        for node in &status.nodes {
            *nodes.entry(node.health.as_str().to_owned()).or_default() += 1;
        }
        Self { ready: status.ready, registry: format!("{:?}", status.registry).to_lowercase(), nodes }
    }
}

impl From<NodeStatus> for Node {
    fn from(node: NodeStatus) -> Self {
        let Load { running, waiting, waiting_prefill_tokens, running_context_tokens, .. } = node.load;
        let Load { step_prompt_tokens, left_over, steps, pages, .. } = node.load;
        Self {
            id: node.id.0,
            roles: node.roles.iter().map(ToString::to_string).collect(),
            epoch: node.epoch,
            incarnation: node.incarnation.0,
            health: node.health.as_str().to_owned(),
            slow: node.slow,
            announced: node.announced,
            model: node.model,
            control_addr: node.control_addr,
            in_flight: node.in_flight,
            load: NodeLoad {
                running,
                waiting,
                waiting_prefill_tokens,
                running_context_tokens,
                step_prompt_tokens,
                left_over,
            },
            pages: pages.into(),
            step_model: StepModel {
                prefill: steps.prefill.map(Into::into),
                decode: steps.decode.map(Into::into),
            },
            links: node.kv_paths.into_iter().map(Into::into).collect(),
            indexed_pages: node.indexed_pages,
        }
    }
}

impl From<PageCounts> for Pages {
    fn from(counts: PageCounts) -> Self {
        let PageCounts { free, cached, running, receiving, sending, quarantined, total, promised } = counts;
        Self { free, cached, running, receiving, sending, quarantined, total, promised }
    }
}

impl From<StepCost> for Cost {
    fn from(StepCost { base, unit, context }: StepCost) -> Self {
        Self { base, unit, context }
    }
}

impl From<wire::KvPath> for Link {
    fn from(path: wire::KvPath) -> Self {
        let wire::KvPath { prefill_node, transport, bytes_per_second, fallback } = path;
        Self {
            from: prefill_node,
            transport,
            bytes_per_second: (bytes_per_second > 0.0).then_some(bytes_per_second),
            fallback: (!fallback.is_empty()).then_some(fallback),
        }
    }
}

impl From<RequestStatus> for Request {
    fn from(request: RequestStatus) -> Self {
        let stage = match request.stage {
            Stage::Queued => "queued",
            Stage::Routed => "routed",
            Stage::Prefill => "prefill",
            Stage::Decode => "decode",
        };
        Self {
            id: request.id.to_string(),
            tenant: request.tenant,
            model: request.model,
            stage: stage.to_owned(),
            priority: request.priority,
            age_ms: ms(request.age),
            left_ms: ms(request.left),
            ttft_ms: ms(request.budgets.ttft),
            itl_ms: ms(request.budgets.itl),
            prompt_tokens: request.prompt_tokens,
            tokens: request.tokens,
            attempts: request.attempts,
            decode: request.decode.map(name),
            prefill: request.prefill.map(name),
        }
    }
}

impl From<(String, balancer::Advice)> for Advice {
    fn from((model, advice): (String, balancer::Advice)) -> Self {
        let balancer::Advice { demand, now, outlook, wanted, gains } = advice;
        Self {
            model,
            requests_per_second: demand.requests,
            prompt_tokens: demand.prompt,
            computed_tokens: demand.computed,
            answer_tokens: demand.answers,
            prefill: now.prefill,
            decode: now.decode,
            ttft_attained: outlook.ttft,
            itl_attained: outlook.itl,
            pressure: outlook.pressure,
            wanted_prefill: wanted.prefill,
            wanted_decode: wanted.decode,
            gains: gains.map(|role| role.to_string()),
        }
    }
}

impl From<(String, QueueStatus)> for Queue {
    fn from((model, queue): (String, QueueStatus)) -> Self {
        let QueueStatus { running, waiting, by_tenant, interval } = queue;
        Self { model, running, waiting, waiting_by_tenant: by_tenant, interval_ms: interval.map(ms) }
    }
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        let Limits { revision, max_running, max_waiting, max_wait_ms, budgets } = limits;
        let BudgetConfig { ttft_ms, itl_ms, kept_by_nodes, classes } = budgets;
        let classes = classes.into_iter().map(Into::into).collect();
        Self { revision, max_running, max_waiting, max_wait_ms, ttft_ms, itl_ms, kept_by_nodes, classes }
    }
}

impl From<LimitsView> for Limits {
    fn from(view: LimitsView) -> Self {
        let LimitsView { revision, max_running, max_waiting, max_wait_ms, .. } = view;
        let LimitsView { ttft_ms, itl_ms, kept_by_nodes, .. } = view;
        let classes = view.classes.into_iter().map(Into::into).collect();
        let budgets = BudgetConfig { ttft_ms, itl_ms, kept_by_nodes, classes };
        Self { revision, max_running, max_waiting, max_wait_ms, budgets }
    }
}

impl From<BudgetClass> for ClassView {
    fn from(class: BudgetClass) -> Self {
        let BudgetClass { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes } = class;
        Self { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes }
    }
}

impl From<ClassView> for BudgetClass {
    fn from(class: ClassView) -> Self {
        let ClassView { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes } = class;
        Self { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes }
    }
}
