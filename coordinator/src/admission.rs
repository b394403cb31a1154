//! How many requests run, how many wait, in which order and for how long.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use baton_protocol::{ErrorCode, Failure};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    Limits,
    queue::{Claim, Queue},
};

/// A place among the running requests; dropping it gives it to the next in line.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Admission>);

/// Places for running requests, and a bounded line before them.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
}

/// Who runs and who waits.
#[derive(Clone, Debug, Default)]
pub struct QueueStatus {
    /// Requests that have a place.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Those that wait, by tenant.
    pub by_tenant: BTreeMap<String, usize>,
    /// Between two places that come free while somebody waits, of late; unknown at first.
    pub interval: Option<Duration>,
}

#[derive(Debug)]
struct State {
    running: usize,
    max_running: usize,
    max_waiting: usize,
    max_wait: Duration,
    line: Queue<oneshot::Sender<Permit>>,
    pace: Pace,
}

/// How fast places come free while someone waits.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    /// Between two of them, on average of late.
    interval: Option<Duration>,
}

/// One in line; leaves it when dropped.
struct InLine {
    admission: Arc<Admission>,
    number: u64,
}

/// When a refused request may try again while nothing is known of how fast places come free.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So many times `max_wait_ms` are waited in the end.
const LATE: u32 = 2;
/// One part in so many of the average is the newest interval's.
const NEWEST: u32 = 8;

// === impl Admission ===

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let state = State {
            running: 0,
            max_running: limits.max_running,
            max_waiting: limits.max_waiting,
            max_wait: Duration::from_millis(limits.max_wait_ms),
            line: Queue::default(),
            pace: Pace::default(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Other limits from now on: who has a place keeps it, and who waits goes on waiting.
    pub(crate) fn set(self: &Arc<Self>, limits: &Limits) {
        {
            let mut state = self.state.lock();
            state.max_running = limits.max_running;
            state.max_waiting = limits.max_waiting;
            state.max_wait = Duration::from_millis(limits.max_wait_ms);
        }
        self.call();
    }

    pub(crate) fn status(&self) -> QueueStatus {
        let state = self.state.lock();
        QueueStatus {
            running: state.running,
            waiting: state.line.len(),
            by_tenant: state.line.by_tenant(),
            interval: state.pace.interval,
        }
    }

    /// A place now or after waiting in line. Who would be refused in the end is refused at once.
    pub(crate) async fn admit(self: &Arc<Self>, claim: Claim, deadline: Instant) -> Result<Permit, Failure> {
        let (now, max_wait) = (Instant::now(), self.state.lock().max_wait);
        // Whoever was expected to get a place in time has waited most of the way when it is
        // late, and is refused only when that goes on.
        let patience = now + LATE * max_wait;
        let last = patience.min(deadline);
        let expected_by = deadline.min(now + max_wait);
        let Some((in_line, called)) = self.line_up(claim, expected_by)? else {
            return Ok(Permit(Arc::clone(self)));
        };
        let called = timeout_at(last, called).await;
        drop(in_line);
        match called {
            Ok(Ok(permit)) => Ok(permit),
            Err(_) if deadline <= patience => Err(Failure::new(
                ErrorCode::DeadlineExceeded,
                "the deadline passed while waiting for a place",
            )),
            Ok(Err(_)) | Err(_) => Err(overloaded("waited too long for a place", RETRY_AFTER)),
        }
    }

    /// Takes a free place (none), or lines up, if that is of use before `last`.
    fn line_up(
        self: &Arc<Self>,
        claim: Claim,
        last: Instant,
    ) -> Result<Option<(InLine, oneshot::Receiver<Permit>)>, Failure> {
        let mut state = self.state.lock();
        if state.running < state.max_running {
            state.running += 1;
            return Ok(None);
        }
        let wait = state.pace.wait(state.line.ahead_of(&claim));
        if state.line.len() >= state.max_waiting {
            return Err(overloaded("too many requests are waiting", wait.unwrap_or(RETRY_AFTER)));
        }
        if let Some(wait) = wait.filter(|wait| Instant::now() + *wait > last) {
            return Err(overloaded("no place is expected to be free in time", wait));
        }
        if state.line.len() == 0 {
            state.pace.last = None;
        }
        let (call, called) = oneshot::channel();
        let number = state.line.push(claim, call);
        Ok(Some((InLine { admission: Arc::clone(self), number }, called)))
    }

    /// A place came free.
    fn release(self: &Arc<Self>) {
        self.state.lock().running -= 1;
        self.call();
    }

    /// Gives free places to the next in line. Who has left meanwhile gives it back at once.
    fn call(self: &Arc<Self>) {
        while let Some(call) = self.next() {
            drop(call.send(Permit(Arc::clone(self))));
        }
    }

    fn next(&self) -> Option<oneshot::Sender<Permit>> {
        let mut state = self.state.lock();
        if state.running >= state.max_running {
            return None;
        }
        let next = state.line.pop()?;
        state.running += 1;
        state.pace.tick(Instant::now());
        Some(next)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.admission.state.lock().line.leave(self.number);
    }
}

// === impl Pace ===

impl Pace {
    /// A place came free for someone in line.
    fn tick(&mut self, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        let newest = now - last;
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

    const SECOND: Duration = Duration::from_secs(1);

    fn admission(max_running: usize, max_waiting: usize, max_wait_ms: u64) -> Arc<Admission> {
        let usual = Limits::of(&CoordinatorConfig::default());
        Admission::new(&Limits { max_running, max_waiting, max_wait_ms, ..usual })
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn claim() -> Claim {
        Claim { tenant: String::new(), priority: 0, due: far(), tokens: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_refuses_at_once_and_says_when_to_come_back() {
        let admission = admission(1, 0, 1000);
        let held = admission.admit(claim(), far()).await.unwrap();
        let refused = admission.admit(claim(), far()).await.unwrap_err();
        assert_eq!((refused.code, refused.retry_after), (ErrorCode::Overloaded, Some(RETRY_AFTER)));
        drop(held);
        admission.admit(claim(), far()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_a_place_or_with_patience_or_with_the_deadline() {
        let admission = admission(1, 1, 1000);
        let held = admission.admit(claim(), far()).await.unwrap();
        assert_eq!(admission.admit(claim(), far()).await.unwrap_err().code, ErrorCode::Overloaded);
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(admission.admit(claim(), soon).await.unwrap_err().code, ErrorCode::DeadlineExceeded);
        let (next, ()) = tokio::join!(admission.admit(claim(), far()), async { drop(held) });
        drop(next.unwrap());
        let state = admission.state.lock();
        assert_eq!((state.running, state.line.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_served_in_time_is_refused_early() {
        let admission = admission(1, 100, 3_600_000);
        let held = admission.admit(claim(), far()).await.unwrap();
        // Places come free each second.
        let others = (0..8).map(|_| async {
            let place = admission.admit(claim(), far()).await.unwrap();
            tokio::time::sleep(SECOND).await;
            drop(place);
        });
        let impatient = async {
            tokio::time::sleep(SECOND * 7 / 2).await;
            let begun = Instant::now();
            let refused = admission.admit(claim(), begun + SECOND).await.unwrap_err();
            assert_eq!((refused.code, begun.elapsed()), (ErrorCode::Overloaded, Duration::ZERO));
            // Four wait before it.
            let wait = refused.retry_after.unwrap().as_secs_f64();
            assert!((4.9..5.1).contains(&wait), "{wait} s");
            // Who is more important has none before it.
            let urgent = Claim { priority: 1, ..claim() };
            drop(admission.admit(urgent, begun + SECOND * 3 / 2).await.unwrap());
        };
        tokio::join!(futures::future::join_all(others), impatient, async { drop(held) });
        assert_eq!(admission.state.lock().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_for_one_who_left_goes_on() {
        let admission = admission(1, 100, 1000);
        let held = admission.admit(claim(), far()).await.unwrap();
        let mut leaves = Box::pin(admission.admit(claim(), far()));
        assert!(futures::poll!(&mut leaves).is_pending());
        let mut stays = Box::pin(admission.admit(claim(), far()));
        assert!(futures::poll!(&mut stays).is_pending());
        // The place is given to the first, who goes without having seen it.
        drop(held);
        drop(leaves);
        drop(stays.await.unwrap());
        assert_eq!(admission.state.lock().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_change_while_requests_run_and_wait() {
        let admission = admission(1, 100, 3_600_000);
        let held = admission.admit(claim(), far()).await.unwrap();
        let mut waits = Box::pin(futures::future::join_all((0..3).map(|_| admission.admit(claim(), far()))));
        assert!(futures::poll!(&mut waits).is_pending());
        let status = admission.status();
        assert_eq!((status.running, status.waiting, status.by_tenant[""]), (1, 3, 3));
        let usual = Limits::of(&CoordinatorConfig::default());
        admission.set(&Limits { max_running: 4, ..usual.clone() });
        let mut places = waits.await;
        assert_eq!((admission.status().running, admission.status().waiting), (4, 0));
        // With fewer places nobody loses one, and nobody gets one before enough are free.
        admission.set(&Limits { max_running: 2, max_waiting: 1, ..usual });
        let mut next = Box::pin(admission.admit(claim(), far()));
        assert!(futures::poll!(&mut next).is_pending());
        drop((held, places.pop()));
        assert!(futures::poll!(&mut next).is_pending());
        assert!(admission.admit(claim(), far()).await.is_err());
        drop(places.pop());
        drop(next.await.unwrap());
        assert_eq!(admission.status().running, 1);
    }
}
