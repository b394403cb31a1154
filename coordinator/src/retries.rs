//! How often what a node has refused may be tried on another: a tenth of all
//! requests, and three a second. Without a bound, a cluster that is full or
//! failing is asked several times for each request, and stays so.
//!
//! Attempts after the loss of a node do not count: an answer goes on, and the
//! next attempt of the same request is what keeps it. Those are bounded by
//! `max_attempts` and by the quarantine.

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tokens of a bucket that each retry takes one from.
#[derive(Debug)]
pub(crate) struct Retries(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

const EACH_REQUEST: f64 = 0.1;
const EACH_SECOND: f64 = 3.0;
/// What ten seconds without requests save up.
const MOST: f64 = 30.0;

// === impl Retries ===

impl Retries {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Bucket { tokens: MOST, at: now }))
    }

    /// A request has come.
    pub(crate) fn request(&self, now: Instant) {
        let mut bucket = self.0.lock();
        bucket.fill(now, EACH_REQUEST);
    }

    /// Whether a retry may be made, which is counted.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock();
        bucket.fill(now, 0.0);
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }
}

impl Bucket {
    fn fill(&mut self, now: Instant, more: f64) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + EACH_SECOND * seconds + more).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tenth_of_the_requests_and_three_a_second() {
        let start = Instant::now();
        let retries = Retries::new(start);
        let taken = |now| (0..1000).filter(|_| retries.take(now)).count();
        assert_eq!(taken(start), 30);
        (0..105).for_each(|_| retries.request(start));
        assert_eq!(taken(start), 10);
        let later = start + Duration::from_secs(2);
        assert_eq!(taken(later), 6);
        assert_eq!(taken(later + Duration::from_secs(3600)), 30);
    }
}
