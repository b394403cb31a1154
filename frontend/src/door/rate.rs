//! So many a minute, as a bucket that fills evenly and may be overdrawn.

use std::time::Duration;

use tokio::time::Instant;

/// How much is left of a rate.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// What it holds when full, which flows in within a minute.
    limit: u32,
    /// Below zero after more was spent than was there.
    level: f64,
    filled: Instant,
}

const MINUTE: Duration = Duration::from_secs(60);

// === impl Bucket ===

impl Bucket {
    /// A full one.
    pub fn new(limit: u32, now: Instant) -> Self {
        Self { limit, level: f64::from(limit), filled: now }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Takes out `amount`, whether it is there or not.
    pub fn spend(&mut self, amount: u32, now: Instant) {
        self.fill(now);
        self.level -= f64::from(amount);
    }

    /// Whole units that are left.
    pub fn left(&mut self, now: Instant) -> u32 {
        self.fill(now);
        self.level.max(0.0) as u32
    }

    /// Time until `amount` is there; zero if it is.
    pub fn until(&mut self, amount: u32, now: Instant) -> Duration {
        self.fill(now);
        let missing = f64::from(amount) - self.level;
        if missing <= 0.0 { Duration::ZERO } else { MINUTE.mul_f64(missing / f64::from(self.limit)) }
    }

    /// Time until it is full.
    pub fn until_full(&mut self, now: Instant) -> Duration {
        self.until(self.limit, now)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64() / MINUTE.as_secs_f64();
        let limit = f64::from(self.limit);
        self.level = (self.level + passed * limit).min(limit);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_overdrawn_bucket_says_when_there_is_something_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(60, start);
        bucket.spend(90, start);
        assert_eq!(bucket.left(start), 0);
        assert_eq!(bucket.until(1, start), Duration::from_secs(31));
        assert_eq!(bucket.left(start + Duration::from_secs(31)), 1);
        assert_eq!(bucket.until_full(start + Duration::from_secs(90)), Duration::ZERO);
        assert_eq!(bucket.left(start + Duration::from_secs(900)), 60, "no more than it holds");
    }

    proptest! {
        /// Whoever waits as long as was said finds what was promised, and in any
        /// time no more is spent than the rate and one full bucket.
        #[test]
        fn waits_are_right_and_the_rate_holds(
            limit in 1..5000_u32,
            steps in proptest::collection::vec((1..200_u32, 0..5000_u64), 1..60),
        ) {
            let start = Instant::now();
            let (mut bucket, mut now, mut spent) = (Bucket::new(limit, start), start, 0.0);
            for (amount, millis) in steps {
                let amount = amount.min(limit);
                now += Duration::from_millis(millis);
                // A nanosecond for rounding.
                now += bucket.until(amount, now) + Duration::from_nanos(1);
                prop_assert_eq!(bucket.until(amount, now + Duration::from_micros(1)), Duration::ZERO);
                bucket.spend(amount, now);
                spent += f64::from(amount);
                let minutes = (now - start).as_secs_f64() / 60.0;
                prop_assert!(spent <= f64::from(limit) * (1.0 + minutes) + 1e-3);
            }
        }
    }
}
