//! Places for running requests, and a bounded line before them. Pure: the clock is passed in.

use std::time::Duration;

use baton_protocol::{ErrorCode, Failure};
use tokio::time::Instant;

use crate::{
    Limits, QueueStatus,
    queue::{Claim, Queue},
};

/// Who runs and who waits. Those that wait do so with a `T`, by which they are called.
#[derive(Debug)]
pub struct Places<T> {
    running: usize,
    max_running: usize,
    max_waiting: usize,
    max_wait: Duration,
    line: Queue<T>,
    pace: Pace,
}

/// What a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has a place.
    Taken,
    /// It waits.
    InLine {
        /// By which it leaves the line.
        number: u64,
        /// Until when at most.
        until: Instant,
    },
}

/// How fast places come free while someone waits.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Since>,
    /// Between two of them, on average of late.
    interval: Option<Duration>,
}

/// Since when the next place is waited for.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// The one before came free for somebody.
    Free(Instant),
    /// Somebody came, when nobody waited.
    Came(Instant),
}

/// When a refused request may try again while nothing is known of how fast places come free.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So many times `max_wait_ms` are waited in the end.
const LATE: u32 = 2;
/// One part in so many of the average is the newest interval's.
const NEWEST: u32 = 8;

// === impl Places ===

impl<T> Places<T> {
    /// All of them free.
    pub fn new(limits: &Limits) -> Self {
        Self {
            running: 0,
            max_running: limits.max_running,
            max_waiting: limits.max_waiting,
            max_wait: Duration::from_millis(limits.max_wait_ms),
            line: Queue::default(),
            pace: Pace::default(),
        }
    }

    /// Other limits from now on: who has a place keeps it, and who waits goes on waiting.
    pub fn set(&mut self, limits: &Limits) {
        self.max_running = limits.max_running;
        self.max_waiting = limits.max_waiting;
        self.max_wait = Duration::from_millis(limits.max_wait_ms);
    }

    /// Who runs and who waits.
    pub fn status(&self) -> QueueStatus {
        QueueStatus {
            running: self.running,
            waiting: self.line.len(),
            by_tenant: self.line.by_tenant(),
            interval: self.pace.interval,
        }
    }

    /// A free place, or one in the line if that is of use before the deadline. Who would be
    /// refused in the end is refused at once.
    ///
    /// # Errors
    /// `Overloaded`, with when to come back.
    pub fn enter(
        &mut self,
        claim: Claim,
        with: T,
        deadline: Instant,
        now: Instant,
    ) -> Result<Entry, Failure> {
        if self.running < self.max_running {
            self.running += 1;
            return Ok(Entry::Taken);
        }
        let wait = self.pace.wait(self.line.ahead_of(&claim));
        if self.line.len() >= self.max_waiting {
            return Err(overloaded("too many requests are waiting", wait.unwrap_or(RETRY_AFTER)));
        }
        if self.line.len() == 0 {
            // Whatever is expected: only where somebody waits is it seen that places come free faster again.
            self.pace.last = Some(Since::Came(now));
        } else if let Some(wait) = wait.filter(|wait| now + *wait > deadline.min(now + self.max_wait)) {
            return Err(overloaded("no place is expected to be free in time", wait));
        }
        // Whoever was expected to get a place in time has waited most of the way when it is
        // late, and is refused only when that goes on.
        let until = deadline.min(now + LATE * self.max_wait);
        Ok(Entry::InLine { number: self.line.push(claim, with), until })
    }

    /// A place came free.
    pub fn release(&mut self) {
        self.running -= 1;
    }

    /// Gives a free place, if there is one, to the next in line.
    pub fn call(&mut self, now: Instant) -> Option<T> {
        if self.running >= self.max_running {
            return None;
        }
        let next = self.line.pop()?;
        self.running += 1;
        self.pace.tick(now);
        Some(next)
    }

    /// Leaves the line; nothing happens if it has gone.
    pub fn leave(&mut self, number: u64) {
        self.line.leave(number);
    }
}

// === impl Pace ===

impl Pace {
    /// A place came free for someone in line.
    fn tick(&mut self, now: Instant) {
        let newest = match self.last.replace(Since::Free(now)) {
            Some(Since::Free(last)) => now - last,
            // A part of an interval, which says something where it is shorter than those before.
            Some(Since::Came(first)) if self.interval.is_some_and(|usual| now - first < usual) => now - first,
            _ => return,
        };
        self.interval = Some(self.interval.map_or(newest, |usual| (usual * (NEWEST - 1) + newest) / NEWEST));
    }

    /// Until the place after so many others is free, if anything is known.
    fn wait(&self, ahead: usize) -> Option<Duration> {
        let places = u32::try_from(ahead + 1).unwrap_or(u32::MAX);
        Some(self.interval?.saturating_mul(places))
    }
}

/// Refused; `wait`: what it would have waited.
pub(crate) fn overloaded(why: &str, wait: Duration) -> Failure {
    Failure { retry_after: Some(wait), ..Failure::new(ErrorCode::Overloaded, why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoordinatorConfig;

    #[test]
    fn a_stall_does_not_shut_the_line_for_good() {
        let limits = Limits {
            max_running: 1,
            max_waiting: 100,
            max_wait_ms: 250,
            ..Limits::of(&CoordinatorConfig::default())
        };
        let (mut places, mut now) = (Places::new(&limits), Instant::now());
        let claim = |now| Claim { tenant: String::new(), priority: 0, due: now, tokens: 1 };
        let enter = |places: &mut Places<()>, now| places.enter(claim(now), (), now + 20 * RETRY_AFTER, now);
        assert_eq!(enter(&mut places, now).unwrap(), Entry::Taken);
        for _ in 0..3 {
            assert!(matches!(enter(&mut places, now).unwrap(), Entry::InLine { .. }));
        }
        // Whoever has a place keeps it for long.
        for _ in 0..3 {
            now += 5 * RETRY_AFTER;
            places.release();
            places.call(now).unwrap();
        }
        assert_eq!(places.status().interval, Some(5 * RETRY_AFTER));
        // One may wait, and nobody behind it.
        enter(&mut places, now).unwrap();
        let refused = enter(&mut places, now).unwrap_err();
        assert_eq!(refused.retry_after, Some(10 * RETRY_AFTER));
        // With each that has waited for little, more is known of how fast places come free again.
        let mut refusals = 0;
        loop {
            now += RETRY_AFTER / 50;
            places.release();
            places.call(now).unwrap();
            enter(&mut places, now).unwrap();
            match enter(&mut places, now) {
                Ok(_) => break,
                Err(_) => refusals += 1,
            }
        }
        assert!((10..40).contains(&refusals), "{refusals}");
    }
}
