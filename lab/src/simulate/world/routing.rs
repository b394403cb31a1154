//! Where requests go, by the coordinator's router.

use std::rc::Rc;

use baton_coordinator::router::Wanted;
use baton_protocol::Role;

use super::{Event, LOOK, World};
use crate::{
    measure::Outcome,
    simulate::{
        live::{Lives, Phase},
        node::{Prompt, Shown},
    },
};

impl World<'_> {
    pub(super) fn route(&mut self, request: usize) {
        let now = self.instant();
        let Some(live) = self.live.get_mut(request) else { return };
        live.phase = Phase::Routing;
        let asked = live.request();
        let began = std::time::Instant::now();
        let wanted = Wanted { request: &asked, budgets: &live.budgets, now };
        let (outliers, avoid) = (&self.outliers, &live.avoid);
        // As the coordinator has it: slow ones last, before them those that it was lost on.
        let decodes = |node: &Rc<Shown>| {
            let is_out = || outliers.is_out(Role::Decode, &node.info.borrow().id, now);
            node.takes(Role::Decode).then(|| 2 * u8::from(is_out()) + u8::from(avoid.contains(&node.number)))
        };
        let prefills = |node: &Rc<Shown>| {
            let is_out = || outliers.is_out(Role::Prefill, &node.info.borrow().id, now);
            node.takes(Role::Prefill).then(|| u8::from(is_out()))
        };
        let [prefill, decode] = &self.pools;
        let choice = self.router.choose(&wanted, &self.index, (decode, &decodes), (prefill, &prefills));
        self.cost.decisions.push(began.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
        live.take_back(asked);
        let Some(choice) = choice else { return self.no_node(request) };
        let foretold = choice.prediction.map_or(self.now, |of| self.now + of.ttft);
        if live.record.output_tokens == 0 && live.deadline.is_some_and(|deadline| foretold > deadline) {
            let body = "no first token is expected before the deadline".to_owned();
            return self.end(request, Outcome::Refused { status: 503, says_when: true, body });
        }
        let [prefill, decode] = &self.pool_nodes;
        live.decode = decode[choice.decode];
        live.candidates = choice.prefill.iter().map(|&at| prefill[at]).collect();
        live.runs = live.candidates.first().copied().unwrap_or(live.decode);
        self.tried += 1;
        live.attempts += 1;
        live.attempt = Lives::attempt(request, self.tried);
        let to = &mut self.nodes[live.decode];
        to.shown.ledger.borrow_mut().occupy();
        let sent = self.nodes[live.runs].shown.ledger.borrow_mut().send_prompt(choice.prefill_tokens, now);
        live.sent = Some((live.runs, sent));
        let to = &mut self.nodes[live.decode];
        live.pages = to.machine.kv.pages_for(live.tokens.len() + 1).min(to.machine.limits.pages);
        live.phase = Phase::Pages;
        to.pending.push_back(live.attempt);
        let node = live.decode;
        self.let_in(node);
    }

    pub(super) fn no_node(&mut self, request: usize) {
        let Some(live) = self.live.get_mut(request) else { return };
        let since = *live.homeless_since.get_or_insert(self.now);
        if self.now - since > self.config.node_wait_ms as f64 / 1e3 {
            let body = "no decode node is ready".to_owned();
            self.end(request, Outcome::Refused { status: 503, says_when: true, body });
        } else {
            self.at(self.now + LOOK, Event::Route { request });
        }
    }

    /// Answers of a decode node that wait for pages get them, in their order.
    pub(super) fn let_in(&mut self, node: usize) {
        while let Some(&attempt) = self.nodes[node].pending.front() {
            let Some(live) = self.live.of(attempt) else {
                self.nodes[node].pending.pop_front();
                continue;
            };
            let of = &mut self.nodes[node];
            live.have = of.cache.matched(&live.chain);
            if !of.reserve(live.pages) {
                return;
            }
            of.pending.pop_front();
            live.holds = true;
            live.phase = Phase::Prompt;
            if live.candidates.is_empty() {
                self.run_here(attempt);
            } else {
                let hop = of.machine.link.hop;
                self.at(self.now + hop, Event::Prompt { attempt });
            }
        }
    }

    /// The prompt runs on the decode node.
    pub(super) fn run_here(&mut self, attempt: u64) {
        let Some(live) = self.live.of(attempt) else {
            return;
        };
        let node = live.decode;
        live.runs = node;
        let end = live.tokens.len();
        let cached = live.cached(live.have, &self.nodes[node]);
        live.record.cached_tokens = Some(cached);
        self.nodes[node].push(Prompt::own(attempt, cached..end));
        self.kick(node);
    }

    /// A prompt has come to the prefill node, or to the next one that lives.
    pub(super) fn prompt(&mut self, attempt: u64) {
        let Some(live) = self.live.of(attempt) else {
            return;
        };
        let up = live.candidates.iter().position(|&node| self.nodes[node].shown.takes(Role::Prefill));
        let Some(at) = up else { return self.run_here(attempt) };
        live.candidates.drain(..at);
        live.runs = live.candidates[0];
        let node = &mut self.nodes[live.runs];
        let matched = node.cache.matched(&live.chain);
        let (cached, end) = (live.cached(matched, node), live.tokens.len());
        live.record.cached_tokens = Some(cached);
        let pages = node.machine.kv.pages_for(end).min(node.machine.limits.pages);
        node.push(Prompt::of_others(attempt, cached..end, pages));
        let runs = live.runs;
        self.kick(runs);
    }
}
