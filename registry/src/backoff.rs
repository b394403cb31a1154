//! Waiting longer after each failure, never in step with others.

use std::{ops::Range, time::Duration};

/// Doubles from the start of its range to the end, each wait shortened by up
/// to half at random, so that many nodes do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    range: Range<Duration>,
    next: Duration,
}

impl Backoff {
    /// Waits between `range.start` and `range.end`.
    pub fn new(range: Range<Duration>) -> Self {
        Self { next: range.start, range }
    }

    /// Starts again from the shortest wait.
    pub fn reset(&mut self) {
        self.next = self.range.start;
    }

    /// How long to wait now; `chance` in 0..=1 is the random part.
    pub fn next(&mut self, chance: f64) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.range.end);
        full.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_are_shortened_by_chance() {
        let mut backoff = Backoff::new(Duration::from_millis(100)..Duration::from_millis(300));
        assert_eq!(backoff.next(0.0), Duration::from_millis(100));
        assert_eq!(backoff.next(1.0), Duration::from_millis(100));
        assert_eq!(backoff.next(0.0), Duration::from_millis(300));
        assert_eq!(backoff.next(0.5), Duration::from_millis(225));
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(100));
    }
}
