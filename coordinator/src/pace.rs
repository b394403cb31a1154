//! How long first tokens and gaps between tokens have taken, finely enough for percentiles of any
//! stretch of time: whoever looks twice subtracts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What was measured since the coordinator began.
#[derive(Debug, Default)]
pub struct Pace {
    /// From receiving a request to its first token.
    pub ttft: Times,
    /// Between consecutive tokens of a choice.
    pub itl: Times,
}

/// How many took how long: step `n` counts what took less than `FIRST * RATIO^n`, and not less than
/// the step before it; the last one has all that took longer.
#[derive(Debug)]
pub struct Times([AtomicU64; Times::STEPS]);

// === impl Times ===

impl Times {
    /// Up to two minutes and a half, and one for all that is longer.
    pub const STEPS: usize = 88;
    /// Upper end of the first step.
    pub const FIRST: Duration = Duration::from_micros(50);
    /// From one upper end to the next: four steps to each doubling.
    pub const RATIO: f64 = 1.189_207_115_002_721;

    /// Counts one.
    pub(crate) fn observe(&self, took: Duration) {
        self.0[step(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts by step.
    pub fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn step(took: Duration) -> usize {
    let over = took.as_secs_f64() / Times::FIRST.as_secs_f64();
    // Below the first upper end it is negative, or infinitely so: that is step 0.
    let step = (over.ln() / Times::RATIO.ln()).floor() + 1.0;
    (step.max(0.0) as usize).min(Times::STEPS - 1)
}

impl Default for Times {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Self::STEPS])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(step: usize) -> f64 {
        Times::FIRST.as_secs_f64() * Times::RATIO.powf(step as f64)
    }

    proptest! {
        #[test]
        fn a_time_lies_between_the_ends_of_its_step(micros in 0u64..200_000_000) {
            let (took, step) = (Duration::from_micros(micros), step(Duration::from_micros(micros)));
            let seconds = took.as_secs_f64();
            prop_assert!(step + 1 == Times::STEPS || seconds < end(step) * 1.000_001);
            prop_assert!(step == 0 || seconds >= end(step - 1) * 0.999_999);
        }
    }

    #[test]
    fn what_is_observed_is_counted_once() {
        let times = Times::default();
        for took in [Duration::ZERO, Duration::from_millis(20), Duration::from_secs(9_000)] {
            times.observe(took);
        }
        let counts = times.counts();
        assert_eq!((counts[0], counts[Times::STEPS - 1], counts.iter().sum::<u64>()), (1, 1, 3));
        assert!(end(Times::STEPS - 2) > 120.0 && end(Times::STEPS) > 150.0);
    }
}
