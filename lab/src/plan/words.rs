//! A plan for people.

use std::fmt;

use super::{Pages, Pick, Plan, Verified};
use crate::simulate::Machine;

/// Why the pick is what it is, and when not to split.
pub(super) fn reasons(plan: &Plan, machine: &Machine, run: f64) -> Vec<String> {
    let task = plan.task;
    let mut reasons = Vec::new();
    let step = machine.step((0.0, 0.0), (1.0, task.prompt as f64));
    if 1e3 * (run + machine.link.front) > task.ttft_ms {
        reasons.push(format!(
            "a prompt alone takes {:.0} ms on a node with nothing else to do: no number of nodes brings \
             first tokens within {} ms",
            1e3 * run,
            task.ttft_ms
        ));
    }
    if 1e3 * step > task.itl_ms {
        reasons.push(format!(
            "a step with one answer takes {:.1} ms: no number of nodes brings tokens within {} ms",
            1e3 * step,
            task.itl_ms
        ));
    }
    if plan.split.is_none() && !super::bears(&task, plan.exposed_ms / 1e3) {
        reasons.push(format!(
            "do not split: {:.0} ms of each transfer would show before the second token, and answers of \
             {} tokens have no gap to spare; the link would have to carry {}",
            plan.exposed_ms,
            task.output,
            rate(plan.hiding_bytes_per_second)
        ));
    }
    match (plan.pick, plan.split, plan.local) {
        (Pick::Local, Some(split), Some(local)) => reasons.push(format!(
            "do not split: {} nodes that do both keep the budgets, split it takes {}; prompts fit between \
             tokens in pieces of {}",
            local.nodes,
            split.prefill + split.decode,
            local.chunk_tokens
        )),
        (Pick::Split, Some(split), Some(local)) => reasons.push(format!(
            "split: {} nodes do what takes {} that do both, whose steps leave {} tokens for prompts",
            split.prefill + split.decode,
            local.nodes,
            local.chunk_tokens
        )),
        (Pick::Split, Some(_), None) => reasons.push(
            "split: no number of nodes that do both keeps the budgets, since steps of answers leave too \
             little time for prompts"
                .to_owned(),
        ),
        _ => {}
    }
    reasons
}

impl Plan {
    fn picked(&self) -> String {
        let pick = match self.pick {
            Pick::Split => "split",
            Pick::Local => "do not split",
            Pick::Neither => "neither: other budgets, another card or fewer tokens",
        };
        match self.cluster().map(|cluster| cluster.nodes()) {
            Some(nodes) if self.cards > 1 => format!(
                "{pick}, {nodes} nodes of {} cards each: {} cards\n  \
                 nodes of several cards need tensor parallelism, which Baton's engine does not have: no \
                 cluster of it runs this plan, and what cards lose by sharing layers is believed, not measured",
                self.cards,
                nodes * self.cards
            ),
            Some(nodes) => format!("{pick}, {nodes} nodes of a card each"),
            None => pick.to_owned(),
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, bytes, count } = *self;
        write!(
            f,
            "pages:  of {tokens} tokens, {:.1} MiB each; a node has {count}, for {} tokens",
            bytes as f64 / f64::from(1 << 20),
            count * tokens as usize
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = self.task;
        writeln!(
            f,
            "{} requests/s of {} + {} tokens ({} cached); {} % within {} ms and {} ms between tokens",
            task.rate,
            task.prompt,
            task.output,
            task.cached,
            1e2 * task.target,
            task.ttft_ms,
            task.itl_ms
        )?;
        match self.split {
            Some(of) => writeln!(
                f,
                "split:  {} prefill + {} decode nodes, steps of {} tokens; {:.1} % foretold in time",
                of.prefill,
                of.decode,
                of.chunk_tokens,
                1e2 * of.attained
            )?,
            None => writeln!(f, "split:  no number of nodes keeps the budgets")?,
        }
        match self.local {
            Some(of) => writeln!(
                f,
                "local:  {} nodes that do both, {} prompt tokens a step; {:.1} % foretold in time",
                of.nodes,
                of.chunk_tokens,
                1e2 * of.attained
            )?,
            None => writeln!(f, "local:  no number of nodes keeps the budgets")?,
        }
        writeln!(f, "{}", self.pages)?;
        writeln!(
            f,
            "link:   {} hides transfers but their last group of layers; as it is {:.1} ms show",
            rate(self.hiding_bytes_per_second),
            self.exposed_ms
        )?;
        writeln!(f, "pick:   {}", self.picked())?;
        if let Some(first) = self.limits.first() {
            let all: Vec<String> =
                self.limits.iter().map(|limit| format!("{} {:.2}/s", limit.what, limit.rate)).collect();
            writeln!(
                f,
                "breaks: {} first, beyond {:.2} requests/s ({})",
                first.what,
                first.rate,
                all.join(", ")
            )?;
        }
        self.reasons.iter().try_for_each(|reason| writeln!(f, "  {reason}"))
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([ttft, ttft_99], [itl, itl_99]) = (self.ttft_ms, self.itl_ms);
        write!(
            f,
            "simulated, {} requests: {:.1} % in time; TTFT p50 {ttft:.1}, p99 {ttft_99:.1} ms; ITL p50 {itl:.1}, \
             p99 {itl_99:.1} ms",
            self.requests,
            1e2 * self.attainment
        )
    }
}

fn rate(bytes_per_second: f64) -> String {
    format!("{:.2} GB/s ({:.0} Gbit/s)", bytes_per_second / 1e9, 8.0 * bytes_per_second / 1e9)
}
