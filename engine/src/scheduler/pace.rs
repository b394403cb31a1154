//! How long tokens take, learnt from the steps that ran, and how many fit into one.
//!
//! Only the order of work depends on it: what is computed does not.

use std::time::Duration;

/// Seconds of a token in steps with prompts; quick to believe a fast step, slow to believe a slow one.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    token: Option<f64>,
}

/// How much of a step that was faster, or slower, is believed.
const FASTER: f64 = 0.5;
const SLOWER: f64 = 0.1;

// === impl Pace ===

impl Pace {
    /// A step of so many tokens, prompts' among them, took `time`.
    pub(crate) fn learn(&mut self, tokens: usize, time: Duration) {
        let seconds = time.as_secs_f64() / tokens.max(1) as f64;
        let before = self.token.unwrap_or(seconds);
        let weight = if seconds < before { FASTER } else { SLOWER };
        self.token = Some(before + weight * (seconds - before));
    }

    /// Tokens that fit into a step of this length, as far as is known.
    pub(crate) fn tokens_within(&self, limit: Duration) -> usize {
        self.token.map_or(usize::MAX, |token| (limit.as_secs_f64() / token) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_step_gets_the_tokens_that_fit_once_something_is_known() {
        let mut pace = Pace::default();
        assert_eq!(pace.tokens_within(40 * MS), usize::MAX);
        pace.learn(512, 256 * MS);
        assert_eq!(pace.tokens_within(40 * MS), 80);
    }

    #[test]
    fn one_slow_step_changes_little() {
        let mut pace = Pace::default();
        (0..20).for_each(|_| pace.learn(100, 50 * MS));
        pace.learn(100, 500 * MS);
        assert!((40..80).contains(&pace.tokens_within(40 * MS)));
        (0..10).for_each(|_| pace.learn(100, 50 * MS));
        assert!((75..=80).contains(&pace.tokens_within(40 * MS)));
    }
}
