//! What prompts may add to a step: tokens, and time where readers of answers beside them were promised theirs.

use std::ops::Range;

use baton_protocol::StepCost;

/// What is left for prompts in a step that is planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    tokens: usize,
    /// Tokens that come in whatever they cost, so that prompts go on.
    least: usize,
    time: Option<Time>,
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
        Self { tokens, least: 0, time: None }
    }

    /// Of these tokens those that `seconds` have time for, but `least` of them at any rate.
    pub(super) fn within(self, seconds: f64, cost: StepCost, least: usize) -> Self {
        Self { least, time: Some(Time { seconds, cost }), ..self }
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
    fn what_costs_nothing_is_bounded_by_tokens() {
        let free = StepCost { base: 0.0, unit: 0.0, context: 0.0 };
        assert_eq!(Budget::of(100).within(0.01, free, 1).fits(50), 100);
        assert_eq!(Budget::of(100).within(-0.01, free, 1).fits(50), 1);
    }
}
