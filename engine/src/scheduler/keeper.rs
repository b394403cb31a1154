//! Time between tokens as readers were promised it: who goes on in a step, who
//! may come in, and how long a step may take. Pure: steps are foretold by what
//! steps before have cost.
//!
//! While a step of all answers keeps the shortest budget, all go on. Beyond
//! that, those go on whose next token is due first, as many as the shortest
//! budget has time for: an answer with a longer one misses steps and loses nothing.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use baton_protocol::StepCost;

use crate::sequence::{Sequence, SequenceKey};

/// An answer that could have a token in the next step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Going {
    pub(super) key: SequenceKey,
    /// Its reader's time between tokens, if there is one.
    budget: Option<Duration>,
    /// When the step began in which it last went on.
    went_on: Instant,
    /// Answers in it, and tokens that each attends to.
    units: f64,
    context: f64,
}

/// Keeps budgets, given what a step with answers costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeper {
    pub(super) cost: StepCost,
    /// Shorter budgets count as this.
    pub(super) floor: Duration,
}

/// Of the time of steps that some miss, so much is given away: next tokens are due
/// between two steps, and come in the one after.
const FILLED: f64 = 0.9;
/// Budgets that can be kept count as no less than this many times what a step costs by itself: whatever one
/// reader wants, a third of its node is left to others.
const LEAST: f64 = 1.5;
/// Answers without a budget have a token in this time, while others have budgets.
const UNBOUND: Duration = Duration::from_secs(1);

// === impl Going ===

impl Going {
    pub(super) fn of(sequence: &Sequence) -> Self {
        Self {
            key: sequence.key,
            budget: sequence.origin.itl,
            went_on: sequence.went_on,
            units: sequence.choices.len().max(1) as f64,
            context: sequence.tokens.len() as f64,
        }
    }
}

// === impl Keeper ===

impl Keeper {
    /// Seconds that a step may take: the shortest budget that can be kept.
    pub(super) fn limit(&self, answers: &[Going]) -> Option<f64> {
        answers.iter().filter_map(|answer| self.kept(answer)).min_by(f64::total_cmp)
    }

    /// Who goes on in the next step, in order of arrival. At least one does.
    pub(super) fn choose(&self, mut answers: Vec<Going>) -> Vec<SequenceKey> {
        if let Some(limit) = self.limit(&answers).filter(|limit| self.step(&answers) > *limit) {
            answers.sort_by_key(|answer| (self.due(answer), answer.key));
            let (mut units, mut contexts) = (0.0, 0.0);
            let fits = |answer: &&Going| {
                units += answer.units;
                contexts += answer.units * answer.context;
                self.cost.seconds(1.0, units, contexts) <= limit
            };
            let fitting = answers.iter().take_while(fits).count();
            answers.truncate(fitting.max(1));
            answers.sort_by_key(|answer| answer.key);
        }
        answers.into_iter().map(|answer| answer.key).collect()
    }

    /// Whether all budgets can be kept with a newcomer too: a step has time for everybody, or
    /// for everybody as often as wanted. Steps that some miss are shorter than the limit by
    /// less than one answer.
    pub(super) fn has_room(&self, answers: &[Going], newcomer: Going) -> bool {
        let all = [answers, &[newcomer]].concat();
        let Some(limit) = self.limit(&all) else { return true };
        if answers.is_empty() || self.step(&all) <= limit {
            return true;
        }
        let largest = all.iter().map(|answer| self.tokens(answer)).fold(0.0, f64::max);
        let shares = all.iter().map(|answer| self.tokens(answer) / self.time(answer).as_secs_f64());
        largest < limit && self.cost.base / (limit - largest) + shares.sum::<f64>() <= FILLED
    }

    /// Seconds of a step in which all of them go on.
    pub(super) fn step(&self, answers: &[Going]) -> f64 {
        self.cost.base + self.beside(answers)
    }

    /// Seconds that they all add to a step of prompts.
    pub(super) fn beside(&self, answers: &[Going]) -> f64 {
        answers.iter().map(|answer| self.tokens(answer)).sum()
    }

    /// Seconds of its budget, if an answer alone could keep it.
    fn kept(&self, answer: &Going) -> Option<f64> {
        let budget = answer.budget?.max(self.floor).as_secs_f64();
        (budget >= self.cost.base + self.tokens(answer)).then_some(budget.max(LEAST * self.cost.base))
    }

    fn due(&self, answer: &Going) -> (Instant, Reverse<bool>) {
        (answer.went_on + self.time(answer), Reverse(answer.budget.is_some()))
    }

    /// In which it is to have its next token. A budget that cannot be kept is none.
    fn time(&self, answer: &Going) -> Duration {
        self.kept(answer).map_or(UNBOUND, Duration::from_secs_f64)
    }

    /// Seconds that its tokens add to a step.
    fn tokens(&self, answer: &Going) -> f64 {
        self.cost.seconds(0.0, answer.units, answer.units * answer.context)
    }
}

#[cfg(test)]
mod tests;
