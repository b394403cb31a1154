//! Clusters that are made up: the coordinator's own code (admission, router, policies, prefix
//! index, ledgers, outliers, balancer) over nodes that are figures, by a clock that jumps from event
//! to event. The same scenario and seed give the same answers, to the last digit.
//!
//! - [`Machine`]: what a node is; [`presets`]: of cards and models; [`fit`]: of measured runs
//! - [`Scenario`]: a cluster, traffic, and what happens to both; as TOML, [`ScenarioFile`]
//! - [`run`]: all of it; [`Simulated`]: what came of it
//! - [`compare`]: beside what was measured
//! - `world`: events; `node`: steps; `cache`: prefixes; `live`: requests
//!
//! What is simplified: of an answer that is preempted all is computed again; what a prompt shares
//! with one that runs is counted twice; promised times between tokens are not kept; messages take a
//! fixed time; a lost node is noticed at once; a slow one knows at once how slow it is.

mod cache;
pub mod compare;
pub mod fit;
mod live;
mod machine;
mod node;
pub mod presets;
mod scenario;
mod world;

use std::{cell::RefCell, rc::Rc, sync::Arc};

use baton_coordinator::{CoordinatorConfig, Ledger, Load, prefix::PrefixIndex};
use baton_protocol::{Incarnation, NodeInfo, NodeState, Role, wire::KvPath};

pub(crate) use self::machine::LAYER_GROUPS;
pub use self::{
    machine::{Limits, Link, Machine},
    scenario::{ClusterShape, CostShape, Happening, MachineShape, ScenarioError, ScenarioFile},
};
use self::{
    node::{Node, Shown},
    world::World,
};
use crate::{
    measure::{Overhead, Run, Spread},
    traffic::{Class, Traffic},
};

/// A cluster, what it is asked, and what happens to it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Of every node.
    pub machine: Machine,
    /// Nodes by role.
    pub cluster: ClusterShape,
    /// As a coordinator is told.
    pub coordinator: CoordinatorConfig,
    /// What is asked.
    pub traffic: Traffic,
    /// Kinds of sessions.
    pub classes: Vec<Class>,
    /// Of what is drawn beside the traffic.
    pub seed: u64,
    /// By their times.
    pub changes: Vec<Change>,
}

/// Something that happens to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Seconds from the start.
    pub at: f64,
    /// What happens.
    pub what: What,
}

/// What can happen to a node, by its number: prefill nodes first, then decode nodes, then those
/// that are both.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// It is gone, with all that it holds.
    Fails {
        /// Its number.
        node: usize,
    },
    /// It is back, and holds nothing.
    Returns {
        /// Its number.
        node: usize,
    },
    /// Its steps take so many times as long as its machine's.
    Slows {
        /// Its number.
        node: usize,
        /// 1 is as usual.
        times: f64,
    },
    /// An operator gives it this role alone.
    Role {
        /// Its number.
        node: usize,
        /// What it does from now on.
        role: Role,
    },
}

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// As if it had been measured.
    pub run: Run,
    /// What it took.
    pub cost: Cost,
    /// Share of their time in which nodes stepped, by what they were at the start: prefill, decode,
    /// both.
    pub busy: [Spread; 3],
    /// What the coordinator did about nodes.
    pub done: Vec<Done>,
    /// Nodes that are up and take prompts, and that take answers, from these seconds on.
    pub roles: Vec<(f64, [usize; 2])>,
    /// Answers whose pages were taken for older ones.
    pub preempted: u64,
}

/// Something that the coordinator did about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Milliseconds from the start.
    pub at_ms: u64,
    /// The node's name.
    pub node: String,
    /// What.
    pub what: Steered,
}

/// What a coordinator does about nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steered {
    /// The balancer gave it this role.
    Role(Role),
    /// It gets no new work for a while, since it is slow.
    Out,
}

/// What simulating took, and covered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Simulated seconds.
    pub seconds: f64,
    /// Events.
    pub events: u64,
    /// Nanoseconds of this machine for each decision of the router.
    pub decisions: Vec<u32>,
}

// === impl Cost ===

impl Cost {
    /// Seconds of a decision.
    pub fn decision(&self) -> Spread {
        Spread::of(self.decisions.iter().map(|&nanos| f64::from(nanos) / 1e9))
    }
}

/// Runs a scenario to the end of its last request.
pub fn run(scenario: Scenario) -> Simulated {
    let Scenario { machine, cluster, coordinator, traffic, classes, seed, changes } = scenario;
    let index = PrefixIndex::new(coordinator.prefix_limits());
    let nodes = nodes(&machine, &cluster, &index);
    let mut world = World::new((&coordinator, seed), (nodes, index), (traffic, &classes), &changes);
    world.run();
    #[cfg(test)]
    assert!(world.nodes().iter().all(Node::is_idle), "a node is left with something");
    let busy = busy(world.nodes(), &cluster, world.cost.seconds);
    let preempted = world.nodes().iter().map(|node| node.preempted).sum();
    let (records, kv_usage) = (std::mem::take(&mut world.records), std::mem::take(&mut world.kv_usage));
    let (done, roles) = (std::mem::take(&mut world.done), std::mem::take(&mut world.roles));
    let first = records.iter().map(|record| record.intended).min_by(f64::total_cmp).unwrap_or(0.0);
    let last = records.iter().map(|record| record.end).max_by(f64::total_cmp).unwrap_or(0.0);
    let run = Run { records, seconds: last - first, overhead: Overhead::default(), kv_usage };
    Simulated { run, cost: std::mem::take(&mut world.cost), busy, done, roles, preempted }
}

fn nodes(machine: &Machine, cluster: &ClusterShape, index: &Arc<PrefixIndex>) -> Vec<Node> {
    let machine = Rc::new(machine.clone());
    let road = KvPath {
        bytes_per_second: machine.link.bytes_per_second,
        transport: "simulated".to_owned(),
        ..KvPath::default()
    };
    let roads: Arc<[KvPath]> = [road].into();
    let node = |(number, (name, roles)): (usize, (String, &'static [Role]))| {
        let shown = Shown {
            number,
            info: RefCell::new(Arc::new(info(name, roles, &machine))),
            load: Load::default().into(),
            ledger: RefCell::new(Ledger::default()),
            holder: index.join(),
            roads: Arc::clone(&roads),
            is_up: true.into(),
        };
        Node::new(Rc::new(shown), Rc::clone(&machine))
    };
    cluster.names().enumerate().map(node).collect()
}

fn info(name: String, roles: &[Role], machine: &Machine) -> NodeInfo {
    NodeInfo {
        id: baton_protocol::NodeId(name),
        incarnation: Incarnation(1),
        roles: roles.iter().copied().collect(),
        epoch: 0,
        control_addr: String::new(),
        model: String::new(),
        model_fingerprint: String::new(),
        text_digest: String::new(),
        context_tokens: u32::MAX,
        kv: machine.kv.clone(),
        pages: machine.limits.pages as u64,
        state: NodeState::Ready,
    }
}

fn busy(nodes: &[Node], cluster: &ClusterShape, seconds: f64) -> [Spread; 3] {
    let (prefill, rest) = nodes.split_at(cluster.prefill.min(nodes.len()));
    let (decode, both) = rest.split_at(cluster.decode.min(rest.len()));
    let share = |node: &Node| node.worked / seconds.max(f64::EPSILON);
    [prefill, decode, both].map(|nodes| Spread::of(nodes.iter().map(share)))
}

impl std::fmt::Display for Steered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Role(role) => write!(f, "has the role {role}, says the balancer"),
            Self::Out => write!(f, "gets no new work for a while, since it is slow"),
        }
    }
}

#[cfg(test)]
mod tests;
