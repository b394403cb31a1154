//! Nodes that do both. A step has all answers and, of prompts, what the budget between tokens has
//! time for; so a prompt takes several such steps, and prompts wait for each other.

use super::{LocalPlan, MOST_NODES, Task};
use crate::simulate::Machine;

/// What is foretold of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outlook {
    /// Share of requests that keep both budgets.
    pub(super) attained: f64,
    /// Prompt tokens of a step.
    pub(super) chunk: f64,
    /// Answers at once.
    pub(super) at_once: f64,
}

/// The fewest nodes that keep the budgets.
pub(super) fn fewest(task: &Task, machine: &Machine) -> Option<LocalPlan> {
    let enough = |nodes: usize| {
        let of = outlook(task, machine, nodes)?;
        (of.attained >= task.target).then_some(LocalPlan {
            nodes,
            chunk_tokens: of.chunk as usize,
            attained: of.attained,
        })
    };
    let (mut too_few, mut most) = (0, 1);
    while enough(most).is_none() {
        (too_few, most) = (most, most * 2);
        if most > MOST_NODES {
            return None;
        }
    }
    while most - too_few > 1 {
        let middle = too_few.midpoint(most);
        if enough(middle).is_some() { most = middle } else { too_few = middle }
    }
    enough(most)
}

/// Of one of so many nodes; none: work would pile up, or not even a page of a prompt has time.
pub(super) fn outlook(task: &Task, machine: &Machine, nodes: usize) -> Option<Outlook> {
    let (prompt, computed, output) = (task.prompt as f64, task.computed() as f64, task.output as f64);
    let rate = task.rate / nodes as f64;
    let each = machine.decode.unit + machine.decode.context * (prompt + output / 2.0);
    let a_token = machine.prefill.unit + machine.prefill.context * (prompt + task.cached as f64) / 2.0;
    let prompts = rate * computed * a_token;
    let left = 1.0 - prompts - rate * output * each;
    if left <= 0.0 {
        return None;
    }
    // A step takes what its answers take, and the prompts' share of the time beside.
    let at_once = rate * output * machine.decode.base / left;
    let answers = machine.decode.base + each * at_once;
    let budget = task.itl_ms / 1e3;
    let most = machine.limits.max_batch_tokens as f64;
    let chunk = ((budget - answers) / a_token).min(most).floor();
    let tokens = (machine.limits.pages * machine.kv.page_tokens as usize) as f64;
    let is_full = at_once * (prompt + output) > tokens || at_once + 1.0 > machine.limits.max_sequences as f64;
    if chunk < f64::from(machine.kv.page_tokens) || is_full {
        return None;
    }
    let step = answers + chunk * a_token;
    let runs = (computed / chunk).ceil() * step.max(machine.decode.base);
    let busy = rate * runs;
    let ways = machine.link.front;
    let left = task.ttft_ms / 1e3 - ways - runs;
    if busy >= 1.0 || left < 0.0 {
        return None;
    }
    // A queue with one server and prompts that are about alike.
    let attained = 1.0 - busy * (-2.0 * (1.0 - busy) * left / runs).exp();
    Some(Outlook { attained, chunk, at_once })
}
