//! How many requests run, how many wait, and for how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use baton_protocol::{ErrorCode, Failure};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::CoordinatorConfig;

/// A place among the running requests; dropping it gives it to the next in line.
#[derive(Debug)]
pub(crate) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Places for running requests, and a bounded line before them.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    max_wait: Duration,
}

/// One in line; leaves it when dropped.
struct InLine(Arc<AtomicUsize>);

/// When a refused request may try again: a guess, since places come free one by one.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Admission {
    pub(crate) fn new(config: &CoordinatorConfig) -> Self {
        Self {
            places: Arc::new(Semaphore::new(config.max_running.min(Semaphore::MAX_PERMITS))),
            waiting: Arc::default(),
            max_waiting: config.max_waiting,
            max_wait: config.max_wait(),
        }
    }

    /// A place now or after waiting in line.
    pub(crate) async fn admit(&self, deadline: Instant) -> Result<Permit, Failure> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let _in_line = self.line_up()?;
        let patience = Instant::now() + self.max_wait;
        match timeout_at(patience.min(deadline), Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Permit(permit)),
            Err(_) if deadline <= patience => Err(Failure::new(
                ErrorCode::DeadlineExceeded,
                "the deadline passed while waiting for a place",
            )),
            Ok(Err(_)) | Err(_) => Err(overloaded("waited too long for a place")),
        }
    }

    fn line_up(&self) -> Result<InLine, Failure> {
        let in_line = InLine(Arc::clone(&self.waiting));
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            return Err(overloaded("too many requests are waiting"));
        }
        Ok(in_line)
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn overloaded(why: &str) -> Failure {
    Failure { retry_after: Some(RETRY_AFTER), ..Failure::new(ErrorCode::Overloaded, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_running: usize, max_waiting: usize, max_wait_ms: u64) -> Admission {
        Admission::new(&CoordinatorConfig { max_running, max_waiting, max_wait_ms, ..Default::default() })
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_refuses_at_once_and_says_when_to_come_back() {
        let admission = admission(1, 0, 1000);
        let held = admission.admit(far()).await.unwrap();
        let refused = admission.admit(far()).await.unwrap_err();
        assert_eq!((refused.code, refused.retry_after), (ErrorCode::Overloaded, Some(RETRY_AFTER)));
        drop(held);
        admission.admit(far()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_a_place_or_with_patience_or_with_the_deadline() {
        let admission = admission(1, 1, 1000);
        let held = admission.admit(far()).await.unwrap();
        assert_eq!(admission.admit(far()).await.unwrap_err().code, ErrorCode::Overloaded);
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(admission.admit(soon).await.unwrap_err().code, ErrorCode::DeadlineExceeded);
        let (next, ()) = tokio::join!(admission.admit(far()), async { drop(held) });
        next.unwrap();
        assert_eq!(admission.waiting.load(Ordering::Relaxed), 0);
    }
}
