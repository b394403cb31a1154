//! What prompts may add to a step: tokens, and time where readers of answers beside them were promised theirs.
//!
//! A prompt that comes to its end in a step has its first token when the step has ended, so that what else is
//! computed in it keeps its reader waiting. What shares a step saves those behind it the base of another one.

use std::ops::Range;

use baton_protocol::StepCost;

/// What is left for prompts in a step that is planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    tokens: usize,
    /// Tokens that come in whatever they cost, so that prompts go on.
    least: usize,
    time: Option<Time>,
    sharing: Option<Sharing>,
}

/// Whether prompts share the step.
#[derive(Clone, Copy, Debug)]
struct Sharing {
    cost: StepCost,
    /// Tokens of a step.
    whole: usize,
    /// Prompts that come to their end in it.
    ending: usize,
    /// Prompts that do not.
    behind: usize,
}

/// Seconds, and what prompts cost of them.
#[derive(Clone, Copy, Debug)]
struct Time {
    seconds: f64,
    cost: StepCost,
}

// === impl Budget ===

impl Budget {
    /// So many tokens, however long they take.
    pub(super) fn of(tokens: usize) -> Self {
        Self { tokens, least: 0, time: None, sharing: None }
    }

    /// Of these tokens those that `seconds` have time for, but `least` of them at any rate.
    pub(super) fn within(self, seconds: f64, cost: StepCost, least: usize) -> Self {
        Self { least, time: Some(Time { seconds, cost }), ..self }
    }

    /// For so many prompts, by steps that cost this: one more shares the step where that keeps readers
    /// waiting for less time than it saves them together.
    pub(super) fn shared(self, cost: StepCost, prompts: usize) -> Self {
        let sharing = Sharing { cost, whole: self.tokens.max(1), ending: 0, behind: prompts };
        Self { sharing: Some(sharing), ..self }
    }

    /// Whether the tokens of a prompt that are not computed yet may share the step. If not, nobody after
    /// it does either.
    pub(super) fn admits(&mut self, left: &Range<usize>) -> bool {
        let tokens = self.fits(left.start).min(left.len());
        let pays = self.sharing.is_none_or(|sharing| sharing.pays(tokens, left));
        if !pays {
            self.tokens = 0;
        }
        pays
    }

    /// A prompt has come to its end in the step.
    pub(super) fn end(&mut self) {
        if let Some(sharing) = &mut self.sharing {
            sharing.ending += 1;
            sharing.behind = sharing.behind.saturating_sub(1);
        }
    }

    /// Tokens that a prompt may compute of which `start` are computed.
    pub(super) fn fits(&self, start: usize) -> usize {
        let within = |time: Time| time.fits(start as f64).max(self.least);
        self.time.map_or(self.tokens, within).min(self.tokens)
    }

    /// These tokens of a prompt are in the step.
    pub(super) fn spend(&mut self, tokens: &Range<usize>) {
        self.tokens = self.tokens.saturating_sub(tokens.len());
        self.least = self.least.saturating_sub(tokens.len());
        if let Some(time) = &mut self.time {
            let contexts = tokens.len() as f64 * (tokens.start + tokens.end) as f64 / 2.0;
            time.seconds -= time.cost.seconds(0.0, tokens.len() as f64, contexts);
        }
    }
}

// === impl Sharing ===

impl Sharing {
    fn pays(&self, tokens: usize, left: &Range<usize>) -> bool {
        let contexts = tokens as f64 * (2 * left.start + tokens) as f64 / 2.0;
        let lost = self.cost.seconds(0.0, tokens as f64, contexts) * self.ending as f64;
        // A part of a prompt saves a part of a step.
        let steps = if tokens == left.len() { 1.0 } else { tokens as f64 / self.whole as f64 };
        lost <= self.cost.base * steps * self.behind as f64
    }
}

// === impl Time ===

impl Time {
    /// The largest n for which unit n + context (start n + n² / 2) is within the time.
    fn fits(&self, start: f64) -> usize {
        let linear = self.cost.unit + self.cost.context * start;
        let root = (linear * linear + 2.0 * self.cost.context * self.seconds.max(0.0)).sqrt();
        (2.0 * self.seconds.max(0.0) / (linear + root).max(1e-12)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: StepCost = StepCost { base: 0.005, unit: 2e-5, context: 4e-9 };

    #[test]
    fn a_chunk_fits_the_time_whatever_is_behind_it() {
        for start in [0, 500, 8_000, 100_000] {
            let budget = Budget::of(8_192).within(0.02, COST, 0);
            let tokens = budget.fits(start);
            let seconds = |end: usize| {
                let tokens = (end - start) as f64;
                COST.seconds(0.0, tokens, tokens * (start + end) as f64 / 2.0)
            };
            assert!(
                seconds(start + tokens) <= 0.02 && seconds(start + tokens + 2) > 0.02,
                "{start}: {tokens}"
            );
        }
    }

    #[test]
    fn what_is_spent_is_gone_and_the_least_comes_once() {
        let mut budget = Budget::of(100).within(0.001, COST, 64);
        assert_eq!(budget.fits(0), 64);
        budget.spend(&(0..64));
        assert_eq!(budget.fits(0), 0);
        let mut budget = Budget::of(100);
        budget.spend(&(10..70));
        assert_eq!(budget.fits(70), 40);
    }

    #[test]
    fn prompts_share_a_step_where_that_saves_more_than_it_costs() {
        // A step costs as much as 250 tokens.
        let of = |prompts| Budget::of(8_192).shared(StepCost { context: 0.0, ..COST }, prompts);
        let mut two = of(2);
        assert!(two.admits(&(0..2_000)));
        two.spend(&(0..2_000));
        two.end();
        // The one behind would save 5 ms, and cost the first one 6.
        assert!(!two.admits(&(0..300)));
        assert_eq!(two.fits(0), 0);
        let mut two = of(2);
        two.end();
        assert!(two.admits(&(0..200)));
        // Of many behind each saves as much, of which half is for half a step.
        let mut many = of(6);
        many.end();
        assert!(many.admits(&(0..1_200)));
        assert!(of(6).admits(&(0..100_000)));
        many.spend(&(0..4_096));
        assert!(!many.admits(&(0..100_000)));
    }

    #[test]
    fn what_costs_nothing_is_bounded_by_tokens() {
        let free = StepCost { base: 0.0, unit: 0.0, context: 0.0 };
        assert_eq!(Budget::of(100).within(0.01, free, 1).fits(50), 100);
        assert_eq!(Budget::of(100).within(-0.01, free, 1).fits(50), 1);
    }
}
