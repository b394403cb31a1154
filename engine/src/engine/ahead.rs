//! Running ahead: a step is enqueued before the tokens of the one before it
//! are read, so that the device does not wait for the host.
//!
//! A sequence that draws in a step under way knows one more token, which is
//! [`pending`] until the step is collected. What ends with the collected token
//! was computed in vain in the step enqueued meanwhile. Steps that need more
//! than one token drawn by the backend for each sequence wait until nothing is
//! under way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Drawn, Engine, Place, count_prompt_tokens};
use crate::{
    EngineError,
    backend::BackendError,
    batch::{Row, pending},
    scheduler::{Chunk, Plan},
    sequence::{Sequence, SequenceKey},
};

/// Steps under way: at most two, and one between two calls of [`Engine::step`].
#[derive(Default)]
pub(super) struct Ahead {
    /// Oldest first.
    steps: VecDeque<Plan>,
    /// Sequences that have ended, whose pages a step under way may still
    /// touch: they stay until the next collect.
    parked: Vec<Sequence>,
    /// When the oldest step under way was enqueued, or the one before it collected.
    began: Option<Instant>,
}

// === impl Ahead ===

impl Ahead {
    /// Whether a step is under way.
    pub fn is_busy(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Lets go of sequences as soon as no step touches their pages.
    pub fn park(&mut self, gone: impl IntoIterator<Item = Sequence>) {
        if self.is_busy() {
            self.parked.extend(gone);
        }
    }

    /// A sequence that has ended and still has its pages.
    pub fn parked(&self, key: SequenceKey) -> Option<&Sequence> {
        self.parked.iter().find(|sequence| sequence.key == key)
    }

    /// Time that the oldest step took; that of the next one begins.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        self.began.replace(now).map_or(Duration::ZERO, |began| now - began)
    }
}

impl Engine {
    /// Whether the plan's step can be enqueued now: everybody who draws is a
    /// choice of its own, for which the backend draws, and nobody waits for its
    /// layers, has rows read, or needs its token to know what may follow.
    pub(super) fn can_enqueue(&self, plan: &Plan) -> bool {
        let is_plain = |chunk: &Chunk| {
            self.scheduler.get(chunk.key).is_some_and(|sequence| {
                let goes_on = chunk.tokens.end < sequence.tokens.len();
                let draws = chunk.wants_logits && sequence.has_parted() && !sequence.is_guided();
                let is_read = sequence.read(&chunk.tokens).is_some();
                !sequence.origin.is_prefill && !is_read && (goes_on || draws)
            })
        };
        self.backend.runs_ahead()
            && !plan.chunks.is_empty()
            && !plan.is_short
            && plan.chunks.iter().all(is_plain)
            && self
                .rules
                .on_backend(&*self.backend, self.scheduler.planned(plan))
                .0
                .iter()
                .all(Option::is_some)
    }

    /// Enqueues the plan's step; what its sequences draw is pending from now on.
    pub(super) fn enqueue(&mut self, plan: Plan) -> Result<(), EngineError> {
        self.books.is_checked = false;
        let pages = self.scheduler.page_ids(&plan);
        let mut batch = self.scheduler.batch(&plan, &pages);
        (batch.draws, batch.shapes) = self.rules.on_backend(&*self.backend, self.scheduler.planned(&plan));
        let enqueued = self.backend.enqueue(&batch);
        if let Err(error) = enqueued {
            return self.blame(&plan, error);
        }
        if !self.ahead.is_busy() {
            self.ahead.began = Some(Instant::now());
        }
        self.scheduler.begins(&plan, Instant::now());
        let mut row = 0;
        for chunk in &plan.chunks {
            let Some(sequence) = self.scheduler.get_mut(chunk.key) else { continue };
            sequence.computed = chunk.tokens.end;
            if chunk.wants_logits {
                sequence.tokens.push(pending(row));
                row += 1;
            }
        }
        self.ahead.steps.push_back(plan);
        Ok(())
    }

    /// Waits for the oldest step under way, if there is one, and books it.
    pub(super) fn collect(&mut self) -> Result<(), EngineError> {
        if !self.ahead.is_busy() {
            return Ok(());
        }
        let drawn = match self.backend.collect() {
            Ok(drawn) => drawn,
            Err(error) => return self.retract(error),
        };
        let Some(plan) = self.ahead.steps.pop_front() else { return Ok(()) };
        let time = self.ahead.lap();
        self.ahead.parked.clear();
        self.learn(&plan, time);
        self.settle(&plan, drawn);
        Ok(())
    }

    /// Puts what was drawn in the place of what was pending.
    fn settle(&mut self, plan: &Plan, drawn: Vec<Option<u32>>) {
        let mut drawn = drawn.into_iter();
        for chunk in &plan.chunks {
            let row = if chunk.wants_logits { drawn.next().map(Row::Token) } else { None };
            // It may have ended since the step was enqueued.
            let Some(sequence) = self.scheduler.get_mut(chunk.key) else { continue };
            count_prompt_tokens(&self.shared.metrics, chunk, sequence);
            let known = chunk.tokens.end;
            sequence.offer(known, &self.pool);
            if !chunk.wants_logits {
                continue;
            }
            let choice = sequence.choices[0].choice;
            match self.rules.draw(Place::of(sequence, &sequence.tokens[..known], choice), row) {
                Drawn::Token(id) => sequence.tokens[known] = id,
                Drawn::End | Drawn::Nothing => self.ahead.park(self.scheduler.take(chunk.key)),
            }
        }
        self.rules.told.tell();
        self.scheduler.count();
    }

    /// The oldest step failed, and those after it are void: all is as before they were enqueued.
    fn retract(&mut self, error: BackendError) -> Result<(), EngineError> {
        let mut failed = Plan::default();
        while let Some(plan) = self.ahead.steps.pop_back() {
            for chunk in &plan.chunks {
                let Some(sequence) = self.scheduler.get_mut(chunk.key) else { continue };
                sequence.computed = chunk.tokens.start;
                if chunk.wants_logits {
                    sequence.tokens.truncate(chunk.tokens.end);
                }
            }
            failed = plan;
        }
        let blamed = self.blame(&failed, error);
        self.ahead.parked.clear();
        blamed
    }

    /// Waits for everything under way and books it.
    pub(super) fn drain(&mut self) -> Result<(), EngineError> {
        while self.ahead.is_busy() {
            self.collect()?;
        }
        Ok(())
    }
}
