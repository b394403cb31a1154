//! How many nodes of which role a load needs, by arithmetic over step models: the balancer's for a
//! split cluster, and its like for nodes that do both.
//!
//! - [`Task`]: what is asked, and what readers put up with; [`Plan`]: what is cheapest for it
//! - `local`: nodes that do both
//! - `words`: a plan for people
//! - [`Verified`]: what a short simulation says of it

mod local;
mod words;

use std::time::Duration;

use baton_coordinator::balancer::{self, Asked, Demand, Outlook, Split};
use baton_protocol::Budgets;
use serde::Serialize;

use crate::{
    measure::Summary,
    simulate::{self, ClusterShape, Machine, Scenario},
    traffic::{Arrivals, Class, Length, Shape, TrafficError, Workload},
};

/// What is asked, and what its readers put up with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Task {
    /// Requests a second.
    pub rate: f64,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Of these, those that a cache holds.
    pub cached: usize,
    /// Tokens of an answer.
    pub output: usize,
    /// Budget to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Budget between tokens, in milliseconds.
    pub itl_ms: f64,
    /// Share of requests that are to keep both.
    pub target: f64,
}

/// What is cheapest: the fewest cards.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// For what.
    pub task: Task,
    /// Cards of a node: the tensor-parallel degree. Nodes of more than one are not there yet.
    pub cards: usize,
    /// Tokens of a page, bytes of one, and pages of a node.
    pub pages: Pages,
    /// The fewest split nodes; none: no number of them keeps the budgets.
    pub split: Option<SplitPlan>,
    /// The fewest nodes that do both.
    pub local: Option<LocalPlan>,
    /// Whether to split.
    pub pick: Pick,
    /// Bytes a second of KV that a prefill node makes: a link that carries as many hides all of a
    /// transfer but the last group of layers.
    pub hiding_bytes_per_second: f64,
    /// Milliseconds of a transfer that show between first and second token, on the link as it is.
    pub exposed_ms: f64,
    /// How far each part of the pick carries, in requests a second; the first breaks first.
    pub limits: Vec<Limit>,
    /// Why it is as it is, for people.
    pub reasons: Vec<String>,
}

/// A node's memory for KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Of a page.
    pub tokens: u32,
    /// Of a page, over all cards of a node.
    pub bytes: usize,
    /// Of a node.
    pub count: usize,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// Prefill and decode nodes.
    Split,
    /// Nodes that do both.
    Local,
    /// Neither keeps the budgets.
    Neither,
}

/// Nodes with a role each.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SplitPlan {
    /// Those that run prompts.
    pub prefill: usize,
    /// Those that generate tokens.
    pub decode: usize,
    /// New tokens of a step of the first: the fewest that cost hardly more than the most.
    pub chunk_tokens: usize,
    /// Share of requests that are foretold to keep both budgets.
    pub attained: f64,
}

/// Nodes that do both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LocalPlan {
    /// Nodes.
    pub nodes: usize,
    /// Prompt tokens of a step for which answers beside it have time.
    pub chunk_tokens: usize,
    /// Share of requests that are foretold to keep both budgets.
    pub attained: f64,
}

/// How far a part carries.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// What breaks.
    pub what: &'static str,
    /// Beyond so many requests a second.
    pub rate: f64,
}

/// What a simulation says.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Share of requests that kept both budgets.
    pub attainment: f64,
    /// Median and 99th percentile of first tokens, in milliseconds.
    pub ttft_ms: [f64; 2],
    /// The same of gaps.
    pub itl_ms: [f64; 2],
    /// Requests simulated.
    pub requests: usize,
}

/// A number that means nothing.
#[derive(Debug, thiserror::Error)]
#[error("{what} must be {wanted}, not {found}")]
pub struct TaskError {
    what: &'static str,
    wanted: &'static str,
    found: f64,
}

/// A step with fewer tokens may cost so much more a token.
const HARDLY_MORE: f64 = 1.02;
/// Steps that are looked at.
const CHUNKS: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// More nodes than this are not planned for.
const MOST_NODES: usize = 100_000;

// === impl Task ===

impl Task {
    /// Whether it can be planned for.
    ///
    /// # Errors
    /// The first number that means nothing.
    pub fn check(&self) -> Result<(), TaskError> {
        let positive = [
            ("rate", self.rate),
            ("prompt", self.prompt as f64),
            ("output", self.output as f64),
            ("ttft-ms", self.ttft_ms),
            ("itl-ms", self.itl_ms),
        ];
        let bad = positive.into_iter().find(|(_, found)| !(*found > 0.0 && found.is_finite()));
        if let Some((what, found)) = bad {
            return Err(TaskError { what, wanted: "above 0", found });
        }
        if self.cached >= self.prompt {
            return Err(TaskError {
                what: "cached",
                wanted: "less than the prompt",
                found: self.cached as f64,
            });
        }
        let is_share = self.target > 0.0 && self.target < 1.0;
        is_share.then_some(()).ok_or(TaskError {
            what: "target",
            wanted: "between 0 and 1",
            found: self.target,
        })
    }

    fn computed(&self) -> usize {
        self.prompt - self.cached
    }

    /// As the balancer has it: a first token comes over `link` ways.
    fn demand(&self, rate: f64, machine: &Machine) -> Demand {
        let ways = machine.link.front + 2.0 * machine.link.hop;
        let seconds = |ms: f64| Duration::from_secs_f64((ms / 1e3).max(1e-6));
        let budgets = Budgets { ttft: seconds(self.ttft_ms - 1e3 * ways), itl: seconds(self.itl_ms) };
        Demand {
            requests: rate,
            asked: vec![Asked { prompt: self.prompt as f64, budgets }],
            computed: self.computed() as f64 / (self.prompt as f64).max(1.0),
            answers: self.output as f64,
            waiting: 0.0,
        }
    }
}

// === impl Plan ===

impl Plan {
    /// The cheapest way to do a task with any of these machines, each of so many cards: the fewest
    /// cards, and of as many the smaller nodes. None: there are no machines.
    pub fn cheapest(task: Task, machines: &[(usize, Machine)]) -> Option<Self> {
        let plans = machines.iter().map(|(cards, machine)| Self { cards: *cards, ..Self::of(task, machine) });
        let all_cards = |plan: &Self| plan.cluster().map_or(usize::MAX, |nodes| nodes.nodes() * plan.cards);
        plans.min_by_key(|plan| (all_cards(plan), plan.cards))
    }

    /// The cheapest way to do a task with such machines, of one card each.
    pub fn of(task: Task, machine: &Machine) -> Self {
        let machine = with_chunk(machine);
        let run = machine.prompt(task.prompt, task.cached);
        let transfer = machine.transfer(task.computed());
        let exposed = (transfer - run).max(transfer / simulate::LAYER_GROUPS);
        let split = split(&task, &machine).filter(|_| bears(&task, exposed));
        let local = local::fewest(&task, &machine);
        let pick = match (split, local) {
            (Some(split), Some(local)) if split.prefill + split.decode < local.nodes => Pick::Split,
            (Some(_), None) => Pick::Split,
            (_, Some(_)) => Pick::Local,
            (None, None) => Pick::Neither,
        };
        let pages = Pages {
            tokens: machine.kv.page_tokens,
            bytes: machine.kv.token_bytes() * machine.kv.page_tokens as usize,
            count: machine.limits.pages,
        };
        let mut plan = Self {
            task,
            cards: 1,
            pages,
            split,
            local,
            pick,
            hiding_bytes_per_second: (task.computed() * machine.kv.token_bytes()) as f64 / run,
            exposed_ms: 1e3 * exposed,
            limits: Vec::new(),
            reasons: Vec::new(),
        };
        plan.limits = plan.limits_of(&machine);
        plan.reasons = words::reasons(&plan, &machine, run);
        plan
    }

    /// Nodes of the pick; none: there is none.
    pub fn cluster(&self) -> Option<ClusterShape> {
        match (self.pick, self.split, self.local) {
            (Pick::Split, Some(SplitPlan { prefill, decode, .. }), _) => {
                Some(ClusterShape { prefill, decode, local: 0 })
            }
            (Pick::Local, _, Some(local)) => Some(ClusterShape { prefill: 0, decode: 0, local: local.nodes }),
            _ => None,
        }
    }

    /// How far each part of the pick carries, the least first.
    fn limits_of(&self, machine: &Machine) -> Vec<Limit> {
        let task = self.task;
        let tokens = (machine.limits.pages * machine.kv.page_tokens as usize) as f64;
        let mut limits = match (self.pick, self.split, self.local) {
            (Pick::Split, Some(own), _) => {
                let split = Split { prefill: own.prefill, decode: own.decode };
                let outlook = |rate| Outlook::of(&task.demand(rate, machine), &balanced(machine), split);
                let bytes = (task.computed() * machine.kv.token_bytes()) as f64;
                let ends = own.prefill.min(own.decode) as f64;
                vec![
                    Limit {
                        what: "first tokens: prefill nodes",
                        rate: highest(|rate| outlook(rate).ttft >= task.target),
                    },
                    Limit {
                        what: "times between tokens: decode nodes",
                        rate: highest(|rate| outlook(rate).itl >= task.target),
                    },
                    Limit { what: "the link", rate: ends * machine.link.bytes_per_second / bytes },
                ]
            }
            (Pick::Local, _, Some(own)) => {
                let outlook = |rate| local::outlook(&Task { rate, ..task }, machine, own.nodes);
                let held = |rate: f64| {
                    outlook(rate).is_some_and(|of| of.at_once * (task.prompt + task.output) as f64 <= tokens)
                };
                vec![
                    Limit {
                        what: "first tokens beside answers",
                        rate: highest(|rate| outlook(rate).is_some_and(|of| of.attained >= task.target)),
                    },
                    Limit { what: "memory for KV", rate: highest(held) },
                ]
            }
            _ => Vec::new(),
        };
        limits.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        limits
    }
}

/// The fewest nodes of each role, if they keep the budgets.
fn split(task: &Task, machine: &Machine) -> Option<SplitPlan> {
    let (demand, balanced) = (task.demand(task.rate, machine), balanced(machine));
    let wanted = Split::wanted(&demand, &balanced);
    let attained = Outlook::of(&demand, &balanced, wanted).attained();
    let enough = attained >= task.target && wanted.prefill + wanted.decode <= MOST_NODES;
    enough.then_some(SplitPlan {
        prefill: wanted.prefill,
        decode: wanted.decode,
        chunk_tokens: machine.limits.max_batch_tokens,
        attained,
    })
}

/// Whether a gap that is so much longer is borne: one of a hundred of an answer's gaps may be.
fn bears(task: &Task, exposed: f64) -> bool {
    task.output > 100 || 1e3 * exposed <= task.itl_ms
}

/// The machine with the smallest steps that cost hardly more a token than the largest.
fn with_chunk(machine: &Machine) -> Machine {
    let each = |chunk: usize| machine.prefill.seconds(1.0, chunk as f64, 0.0) / chunk as f64;
    let most = machine.limits.max_batch_tokens;
    let chunk = CHUNKS.into_iter().find(|&chunk| chunk < most && each(chunk) <= HARDLY_MORE * each(most));
    let mut machine = machine.clone();
    machine.limits.max_batch_tokens = chunk.unwrap_or(most);
    machine
}

fn balanced(machine: &Machine) -> balancer::Machine {
    balancer::Machine {
        prefill: machine.prefill,
        step_tokens: machine.limits.max_batch_tokens as f64,
        decode: machine.decode,
        tokens: (machine.limits.pages * machine.kv.page_tokens as usize) as f64,
    }
}

/// The highest rate that holds, to a thousandth; 0: none does.
fn highest(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut held, mut missed) = (0.0, 1e-3);
    while missed < 1e9 && holds(missed) {
        (held, missed) = (missed, 2.0 * missed);
    }
    while missed - held > 1e-3 * missed && held > 0.0 {
        let middle = (held + missed) / 2.0;
        if holds(middle) { held = middle } else { missed = middle }
    }
    held
}

/// Simulates so many requests on the plan's pick; none: there is no pick.
///
/// # Errors
/// When the task's traffic cannot be made.
pub fn verify(plan: &Plan, machine: &Machine, requests: usize) -> Result<Option<Verified>, TrafficError> {
    let Some(cluster) = plan.cluster() else { return Ok(None) };
    let task = plan.task;
    let mut machine = with_chunk(machine);
    machine.limits.mixed_step_ms = task.itl_ms;
    let shape = Shape {
        input: Length::fixed(task.computed()),
        output: Length::fixed(task.output),
        ..Shape::default()
    };
    let budgets = crate::budgets::Budgets {
        ttft_ms: Some(task.ttft_ms),
        itl_ms: Some(task.itl_ms),
        ..Default::default()
    };
    let workload = Workload {
        sessions: requests,
        arrivals: Arrivals::Poisson { rate: task.rate },
        classes: vec![Class { shape, budgets, ..Class::default() }],
        ..Workload::default()
    };
    let places = baton_coordinator::CoordinatorConfig { max_running: 1_000_000, ..Default::default() };
    let simulated = simulate::run(Scenario {
        machine,
        cluster,
        coordinator: places,
        traffic: workload.traffic()?,
        classes: workload.classes.clone(),
        seed: workload.seed,
        changes: Vec::new(),
    });
    let all = Summary::of(&simulated.run, &workload.classes).all;
    let ms = |p50: f64, p99: f64| [1e3 * p50, 1e3 * p99];
    Ok(Some(Verified {
        attainment: all.attainment,
        ttft_ms: ms(all.ttft.p50, all.ttft.p99),
        itl_ms: ms(all.itl.p50, all.itl.p99),
        requests: all.requests,
    }))
}

#[cfg(test)]
mod tests;
