//! What share of requests would be answered within budgets by so many nodes of
//! each role: arithmetic over arrivals and step models.
//!
//! A pool of prefill nodes is a queue with several servers: Sakasegawa's
//! approximation of the wait ("An approximation formula Lq", 1977), by how much
//! the times of prompts vary, and what waits already is work that comes
//! besides. Each prompt of late is held against its own budget. A decode node
//! has as many answers at once as Little's law says, and that number varies as
//! arrivals at random make it.

use std::time::Duration;

use baton_protocol::{Budgets, StepCost};

/// What a model is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Requests a second.
    pub requests: f64,
    /// What some of them are, each as often as it comes; one at least.
    pub asked: Vec<Asked>,
    /// Share of prompts' tokens that prefill nodes compute: the others are cached, or run on a decode node.
    pub computed: f64,
    /// Tokens of all answers to one request.
    pub answers: f64,
    /// Tokens of prompts that wait on prefill nodes.
    pub waiting: f64,
}

/// What is known of a request when it comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// Tokens of its prompt.
    pub prompt: f64,
    /// What its reader puts up with.
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
/// What waits should be done in so many seconds, beside what comes.
const CATCH_UP: f64 = 30.0;

// === impl Demand ===

impl Demand {
    /// Tokens of a prompt, on average.
    pub fn prompt(&self) -> f64 {
        self.mean(|asked| asked.prompt)
    }

    fn mean(&self, of: impl Fn(&Asked) -> f64) -> f64 {
        self.asked.iter().map(of).sum::<f64>() / self.asked.len().max(1) as f64
    }
}

// === impl Machine ===

impl Machine {
    /// Seconds that a prompt takes of which so many tokens are to be computed.
    fn run(&self, prompt: f64, computed: f64) -> f64 {
        if computed <= 0.0 {
            return 0.0;
        }
        let steps = if self.step_tokens > 0.0 { (computed / self.step_tokens).ceil() } else { 1.0 };
        self.prefill.seconds(steps, computed, computed * (prompt - computed / 2.0).max(0.0))
    }
}

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
    /// Of all ways to give as many nodes one of the roles, each at least one, that which keeps most
    /// requests within budgets; of as many the one with the least pressure, and then the nearest.
    pub fn best(demand: &Demand, machine: &Machine, now: Self) -> Self {
        let nodes = now.prefill + now.decode;
        let splits = (1..nodes).map(|prefill| Self { prefill, decode: nodes - prefill });
        let foretold = splits.map(|split| (split, Outlook::of(demand, machine, split)));
        let better = |(one, of_one): &(Self, Outlook), (other, of_other): &(Self, Outlook)| {
            let far = |split: &Self| split.prefill.abs_diff(now.prefill);
            let attained = of_one.attained().total_cmp(&of_other.attained());
            let pressure = of_other.pressure.total_cmp(&of_one.pressure);
            attained.then(pressure).then(far(other).cmp(&far(one)))
        };
        foretold.max_by(better).map_or(now, |(split, _)| split)
    }

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
    let run = |asked: &Asked| machine.run(asked.prompt, demand.computed * asked.prompt);
    let (mean, squares) = (demand.mean(run), demand.mean(|asked| run(asked).powi(2)));
    if mean <= 0.0 {
        return (1.0, 0.0);
    }
    let nodes = nodes as f64;
    let each_token = mean / (demand.computed * demand.prompt()).max(1.0);
    let busy = (demand.requests * mean + demand.waiting * each_token / CATCH_UP) / nodes;
    if busy >= 1.0 {
        return (0.0, busy);
    }
    let waits = busy.powf((2.0 * (nodes + 1.0)).sqrt() - 1.0);
    // Half the wait of times that vary as they would at random, when they do not vary.
    let ends = 2.0 * nodes * (1.0 - busy) * mean / squares;
    let in_time = |asked: &Asked| {
        let left = seconds(asked.budgets.ttft) - run(asked);
        if left < 0.0 { 0.0 } else { 1.0 - waits * (-left * ends).exp() }
    };
    (demand.mean(in_time), busy)
}

/// Share of answers whose steps are short enough, and how busy the pool is.
fn answers(demand: &Demand, machine: &Machine, nodes: usize) -> (f64, f64) {
    let length = (demand.prompt() + demand.answers / 2.0).max(1.0);
    let StepCost { base, unit, context } = machine.decode;
    // A step of `n` answers takes `base + each * n`.
    let each = (unit + context * length).max(1e-12);
    let in_memory = (machine.tokens / (demand.prompt() + demand.answers).max(1.0)).max(1.0);
    let in_budget = |asked: &Asked| (seconds(asked.budgets.itl) - base) / each;
    // Of those that can be kept, a pool has to keep them all.
    let tightest = demand.asked.iter().map(in_budget).filter(|most| *most >= 1.0).fold(in_memory, f64::min);
    let rate = demand.requests * demand.answers / nodes as f64;
    let busy = rate * (base + each * tightest) / tightest;
    // As many at once as come in the time that one of them takes.
    let room = 1.0 - rate * each;
    if room <= 0.0 {
        return (0.0, busy);
    }
    let at_once = rate * base / room;
    let in_time = |asked: &Asked| match in_budget(asked) {
        most if most < 1.0 => 0.0,
        // The request itself is one of them.
        most => normal((most.min(in_memory) - 0.5 - at_once) / at_once.max(1e-9).sqrt()),
    };
    (demand.mean(in_time), busy)
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
