//! Who asks: requests come, and leave with what they got.

use std::time::Duration;

use baton_coordinator::{
    Claim,
    balancer::{Asked, Ended},
    places::Entry,
};
use baton_protocol::{BlockHash, Budgets, chain};

use super::{Event, World};
use crate::{
    measure::{Outcome, Record},
    simulate::live::{Live, Phase},
    traffic::{Class, Piece},
};

/// The one that is served.
pub(super) const MODEL: &str = "";
/// A deadline further away than this is none.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl World<'_> {
    /// The next session comes at its time.
    pub(super) fn next_arrival(&mut self) {
        let session = self.next_session;
        let Some(next) = self.traffic.sessions.get(session) else { return };
        let at = next.at;
        if self.traffic.until.is_none_or(|until| at < until) {
            self.next_session += 1;
            self.at(at.as_secs_f64(), Event::Arrive { session, turn: 0 });
        }
    }

    /// A client that is free begins the next session.
    pub(super) fn next_client(&mut self, at: f64) {
        let session = self.next_session;
        let goes_on = self.traffic.until.is_none_or(|until| at < until.as_secs_f64());
        if session < self.traffic.sessions.len() && goes_on {
            self.next_session += 1;
            self.at(at, Event::Arrive { session, turn: 0 });
        }
    }

    pub(super) fn arrive(&mut self, session: usize, turn: usize) {
        let tokens = self.speak(session, turn);
        let of = &self.traffic.sessions[session];
        let class = of.class;
        let record = Record::begun((class, session, turn), self.now, of.turns[turn].output_tokens);
        let budgets = self.budgets(class);
        let chain = if self.shares { self.chain(&tokens) } else { Vec::new() };
        let wishes = self.classes.get(class).map(Class::wishes).unwrap_or_default();
        let now = self.instant();
        self.demands.arrived(MODEL, Asked { prompt: tokens.len() as f64, budgets }, now);
        let patience = wishes.deadline_ms.map(|ms| ms / 1e3);
        let left = patience.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let deadline = now + left.unwrap_or(FAR).min(FAR);
        let claim = Claim {
            tenant: String::new(),
            priority: wishes.priority,
            due: deadline.min(now + budgets.ttft),
            tokens: (tokens.len() + record.wanted_tokens) as u64,
        };
        self.arrived += 1;
        let (serial, deadline_at) = (self.arrived, patience.map(|seconds| self.now + seconds));
        let mut live = Live::new(record, tokens, chain, budgets);
        (live.serial, live.deadline) = (serial, deadline_at);
        let request = self.live.insert(live);
        if let Some(at) = deadline_at {
            self.at(at, Event::TooLate { request, serial });
        }
        match self.places.enter(claim, request, deadline, now) {
            Ok(Entry::Taken) => self.at(self.now, Event::Route { request }),
            Ok(Entry::InLine { number, until }) => {
                if let Some(live) = self.live.get_mut(request) {
                    live.in_line = Some(number);
                }
                let until = (until - self.start).as_secs_f64();
                self.at(until, Event::GiveUp { request, number });
            }
            Err(failure) => {
                let refused =
                    Outcome::Refused { status: 503, says_when: true, body: failure.message.clone() };
                self.leave(request, refused);
            }
        }
    }

    pub(super) fn give_up(&mut self, request: usize, number: u64) {
        let waits = |live: &mut Live| live.phase == Phase::Line && live.in_line == Some(number);
        if self.live.get_mut(request).is_some_and(waits) {
            self.places.leave(number);
            let body = "waited too long for a place".to_owned();
            self.leave(request, Outcome::Refused { status: 503, says_when: true, body });
        }
    }

    /// A request's time is over: wherever it is, it ends.
    pub(super) fn too_late(&mut self, request: usize, serial: u64) {
        let Some(live) = self.live.get_mut(request).filter(|live| live.serial == serial) else { return };
        let late = Outcome::Failed { why: "the request's time is over".to_owned() };
        if live.phase == Phase::Line {
            live.in_line.take().into_iter().for_each(|number| self.places.leave(number));
            return self.leave(request, late);
        }
        let (attempt, from, to) = (live.attempt, live.runs, live.decode);
        if attempt > 0 {
            [from, to].into_iter().for_each(|node| self.nodes[node].withdraw(attempt));
        }
        self.end(request, late);
        [from, to].into_iter().for_each(|node| self.wake(node));
    }

    /// What a turn says, behind all that was said before, in token ids.
    pub(super) fn speak(&mut self, session: usize, turn: usize) -> Vec<u32> {
        let of = &self.traffic.sessions[session];
        let pieces = of.prefix.iter().filter(|_| turn == 0).chain(&of.turns[turn].said);
        if !self.shares {
            return vec![0; pieces.map(Piece::tokens).sum()];
        }
        let mut said = self.said.remove(&session).unwrap_or_default();
        pieces.for_each(|piece| said.extend(piece.any_ids()));
        if of.turns.len() > turn + 1 {
            self.said.insert(session, said.clone());
        }
        said
    }

    pub(super) fn chain(&self, tokens: &[u32]) -> Vec<BlockHash> {
        let page = self.nodes.first().map_or(16, |node| node.machine.kv.page_tokens as usize);
        chain("", page, tokens)
    }

    pub(super) fn budgets(&self, class: usize) -> Budgets {
        let usual = &self.config.budgets;
        let of = self.classes.get(class).map(|class| class.budgets).unwrap_or_default();
        let ms = |named: Option<f64>, usual: u64| {
            Duration::try_from_secs_f64(named.map_or(usual as f64, |ms| ms) / 1e3).unwrap_or_default()
        };
        Budgets { ttft: ms(of.ttft_ms, usual.ttft_ms), itl: ms(of.itl_ms, usual.itl_ms) }
    }

    /// A request that has a place ends, and everything that it holds is free.
    pub(super) fn end(&mut self, request: usize, outcome: Outcome) {
        self.let_go(request);
        self.places.release();
        self.leave(request, outcome);
        while let Some(next) = self.places.call(self.instant()) {
            // It is in line no more, whatever else happens now.
            if let Some(live) = self.live.get_mut(next) {
                live.phase = Phase::Routing;
            }
            self.at(self.now, Event::Route { request: next });
        }
    }

    /// Gives back what an attempt holds on nodes that live.
    pub(super) fn let_go(&mut self, request: usize) {
        let now = self.instant();
        let Some(live) = self.live.get_mut(request) else { return };
        if std::mem::take(&mut live.attempt) == 0 {
            return;
        }
        if let Some((at, number)) = live.sent.take() {
            self.nodes[at].shown.ledger.borrow_mut().prompt_ended(number, now);
        }
        let (from, to) = (live.runs, live.decode);
        let node = &mut self.nodes[to];
        node.shown.ledger.borrow_mut().leave(std::mem::take(&mut live.generated));
        if std::mem::take(&mut live.holds) {
            node.release(live.pages);
        }
        let held = std::mem::take(&mut live.held_there);
        if held > 0 {
            self.nodes[from].release(held);
            self.wake(from);
        }
        self.wake(to);
    }

    /// A request is over: its record is kept, and its session goes on.
    pub(super) fn leave(&mut self, request: usize, outcome: Outcome) {
        let Some(live) = self.live.remove(request) else { return };
        let front = self.nodes.first().map_or(0.0, |node| node.machine.link.front);
        let (session, turn) = (live.record.session, live.record.turn);
        let is_answered = outcome == Outcome::Answered;
        if is_answered {
            self.demands.ended(MODEL, ended(&live));
        }
        if let Some(said) = self.said.get_mut(&session).filter(|_| is_answered) {
            let seed = self.seed ^ (session as u64) << 20 ^ turn as u64;
            said.extend(Piece::Drawn { seed, tokens: live.record.wanted_tokens }.any_ids());
            // The decode node holds what it has answered, too.
            let page = self.nodes[live.decode].machine.kv.page_tokens as usize;
            let (whole, node) = (chain("", page, said), &mut self.nodes[live.decode]);
            let room = node.room();
            node.cache.insert(&whole, room);
        }
        let next = self.traffic.sessions[session].turns.get(turn + 1).filter(|_| is_answered);
        if let Some(next) = next {
            let at = self.now + front + next.pause.as_secs_f64();
            self.at(at, Event::Arrive { session, turn: turn + 1 });
        } else {
            self.said.remove(&session);
            if self.traffic.clients.is_some() {
                self.next_client(self.now + front);
            }
        }
        self.records.push(live.into_record(self.now + front, outcome));
    }
}

/// What the balancer is told of an answer: prompts that ran where it was decoded are no work of
/// prefill nodes.
fn ended(live: &Live) -> Ended {
    let prompt_tokens = live.record.prompt_tokens.unwrap_or(0);
    let cached = live.record.cached_tokens.unwrap_or(0);
    let is_own = live.runs == live.decode;
    Ended {
        prompt_tokens,
        computed_tokens: if is_own { 0 } else { prompt_tokens.saturating_sub(cached) },
        answer_tokens: live.record.output_tokens,
    }
}
