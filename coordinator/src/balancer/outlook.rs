//! What share of requests would be answered within budgets by so many nodes of
//! each role: arithmetic over arrivals and step models.
//!
//! A pool of prefill nodes is a queue with several servers and prompts that are
//! about alike: Sakasegawa's approximation of the wait ("An approximation
//! formula Lq", 1977), halved since the times of service hardly vary. A decode
//! node has as many answers at once as Little's law says, and that number
//! varies as arrivals at random make it.

use std::time::Duration;

use baton_protocol::{Budgets, StepCost};

/// What a model is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Requests a second.
    pub requests: f64,
    /// Tokens of a prompt.
    pub prompt: f64,
    /// Those that a prefill node computes: the others are cached, or run on a decode node.
    pub computed: f64,
    /// Tokens of all answers to one request.
    pub answers: f64,
    /// What readers put up with.
    pub budgets: Budgets,
}

/// What one node of a model does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Of steps with prompts.
    pub prefill: StepCost,
    /// Prompt tokens in such a step; 0 is unknown, and counts as all of them.
    pub step_tokens: f64,
    /// Of steps in which answers go on.
    pub decode: StepCost,
    /// Tokens that its pages hold.
    pub tokens: f64,
}

/// Nodes of a model by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Split {
    /// Those that run prompts.
    pub prefill: usize,
    /// Those that generate tokens.
    pub decode: usize,
}

/// What is foretold of a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlook {
    /// Share of requests whose first token comes within its budget.
    pub ttft: f64,
    /// Share of requests whose tokens follow each other within theirs.
    pub itl: f64,
    /// Work over what the busier pool can do: beyond 1 the work that waits grows.
    pub pressure: f64,
}

/// Share of each budget that wanted nodes keep.
const WANTED: f64 = 0.98;
/// Where no number of nodes keeps a budget, they are wanted to be so busy.
const BUSY: f64 = 0.8;

// === impl Outlook ===

impl Outlook {
    /// Of `demand` on a split of such machines; each role has a node at least.
    pub fn of(demand: &Demand, machine: &Machine, split: Split) -> Self {
        let (ttft, prefill) = prompts(demand, machine, split.prefill);
        let (itl, decode) = answers(demand, machine, split.decode);
        Self { ttft, itl, pressure: prefill.max(decode) }
    }

    /// Share of requests that keep both budgets.
    pub fn attained(&self) -> f64 {
        self.ttft * self.itl
    }
}

// === impl Split ===

impl Split {
    /// The fewest nodes of each role that keep the budgets. Where no number of
    /// them can, the fewest that are not too busy.
    pub fn wanted(demand: &Demand, machine: &Machine) -> Self {
        Self {
            prefill: fewest(|nodes| prompts(demand, machine, nodes)),
            decode: fewest(|nodes| answers(demand, machine, nodes)),
        }
    }
}

/// Share of first tokens in time, and how busy the pool is.
fn prompts(demand: &Demand, machine: &Machine, nodes: usize) -> (f64, f64) {
    let (nodes, budget) = (nodes as f64, seconds(demand.budgets.ttft));
    let steps = if machine.step_tokens > 0.0 { (demand.computed / machine.step_tokens).ceil() } else { 1.0 };
    let attended = demand.computed * (demand.prompt - demand.computed / 2.0).max(0.0);
    let run =
        if demand.computed > 0.0 { machine.prefill.seconds(steps, demand.computed, attended) } else { 0.0 };
    let busy = demand.requests * run / nodes;
    if run > budget || busy >= 1.0 {
        return (0.0, busy);
    }
    if run <= 0.0 {
        return (1.0, busy);
    }
    let waits = busy.powf((2.0 * (nodes + 1.0)).sqrt() - 1.0);
    let too_long = (-(budget - run) * 2.0 * nodes * (1.0 - busy) / run).exp();
    (1.0 - waits * too_long, busy)
}

/// Share of answers whose steps are short enough, and how busy the pool is.
fn answers(demand: &Demand, machine: &Machine, nodes: usize) -> (f64, f64) {
    let length = (demand.prompt + demand.answers / 2.0).max(1.0);
    let StepCost { base, unit, context } = machine.decode;
    // A step of `n` answers takes `base + each * n`.
    let each = (unit + context * length).max(1e-12);
    let in_memory = (machine.tokens / (demand.prompt + demand.answers).max(1.0)).max(1.0);
    let in_budget = (seconds(demand.budgets.itl) - base) / each;
    let most = if in_budget >= 1.0 { in_budget.min(in_memory) } else { in_memory };
    let rate = demand.requests * demand.answers / nodes as f64;
    let busy = rate * (base + each * most) / most;
    // As many at once as come in the time that one of them takes.
    let room = 1.0 - rate * each;
    if in_budget < 1.0 || room <= 0.0 {
        return (0.0, busy);
    }
    let at_once = rate * base / room;
    // The request itself is one of them.
    (normal((most - 0.5 - at_once) / at_once.max(1e-9).sqrt()), busy)
}

/// Share of a normal distribution below a deviation; the logistic function is within 0.01 of it.
fn normal(deviation: f64) -> f64 {
    1.0 / (1.0 + (-1.702 * deviation).exp())
}

fn seconds(budget: Duration) -> f64 {
    budget.as_secs_f64()
}

/// The fewest nodes that are enough; both results of `of` grow better with every node.
fn fewest(of: impl Fn(usize) -> (f64, f64)) -> usize {
    let (_, busy) = of(1);
    if !busy.is_finite() {
        return 1;
    }
    let not_too_busy = (busy / BUSY).ceil().max(1.0) as usize;
    // With a twentieth of the work nothing waits: more nodes would not help.
    let most = ((busy / 0.05).ceil().max(1.0) as usize).max(not_too_busy);
    if of(most).0 < WANTED {
        return not_too_busy;
    }
    let (mut too_few, mut enough) = (0, most);
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if of(middle).0 >= WANTED {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    enough
}

#[cfg(test)]
pub(super) mod tests;
