//! What comes from outside: reports by the clock, and nodes that fail, return or grow slow.

use super::{BACKOFF, Event, SAMPLE, World};
use crate::{
    measure::Outcome,
    simulate::{
        Change, What,
        live::{Live, Lives, Phase},
    },
};

impl World<'_> {
    pub(super) fn report(&mut self) {
        let now = self.instant();
        self.nodes.iter_mut().for_each(|node| node.report(now));
        let due = self.kv_usage.len() as f64 * SAMPLE;
        if self.now >= due {
            let (used, total) = self.nodes.iter().fold((0, 0), |(used, total), node| {
                (used + node.used.min(node.machine.limits.pages), total + node.machine.limits.pages)
            });
            self.kv_usage.push(used as f64 / total.max(1) as f64);
        }
        self.steer();
        // The last one is when nothing else can happen.
        if !self.events.is_empty() {
            self.at(self.now + f64::from(self.config.load_interval_ms.max(1)) / 1e3, Event::Report);
        }
    }

    pub(super) fn change(&mut self, index: usize) {
        let Change { what, .. } = &self.changes[index];
        match what {
            What::Fails { node } => self.fail(*node),
            What::Returns { node } => {
                self.nodes[*node].rise();
                self.set_pools();
                self.let_in(*node);
            }
            What::Slows { node, times } => self.nodes[*node].slow_down(*times),
            What::Role { node, role } => self.set_role(*node, *role),
        }
    }

    /// A node dies. Its answers go on elsewhere; prompts that ran there run on the next candidate.
    pub(super) fn fail(&mut self, node: usize) {
        self.nodes[node].die();
        self.outliers.forget(&self.nodes[node].shown.info.borrow().id);
        self.note_roles();
        let max_attempts = self.config.max_attempts;
        let on = |live: &Live| match live.attempt > 0 {
            true if live.decode == node => Some(true),
            true if live.runs == node && live.is_before_answer() => Some(false),
            _ => None,
        };
        let hit: Vec<(usize, bool)> =
            self.live.iter().filter_map(|(request, live)| Some((request, on(live)?))).collect();
        for (request, is_answer) in hit {
            let Some(live) = self.live.get_mut(request) else { continue };
            if live.runs == node {
                live.held_there = 0;
            }
            if !is_answer {
                // What was to come from the node that is gone does not.
                self.tried += 1;
                let attempt = Lives::attempt(request, self.tried);
                live.attempt = attempt;
                live.phase = Phase::Prompt;
                self.at(self.now, Event::Prompt { attempt });
                continue;
            }
            live.holds = false;
            self.let_go(request);
            let Some(live) = self.live.get_mut(request) else { continue };
            live.avoid.push(node);
            live.resume();
            if live.attempts >= max_attempts {
                self.end(request, Outcome::Failed { why: "its nodes were lost".to_owned() });
            } else {
                self.at(self.now + BACKOFF, Event::Route { request });
            }
        }
    }
}
