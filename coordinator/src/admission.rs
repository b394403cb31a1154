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
    places::{Entry, Places, RETRY_AFTER, overloaded},
    queue::Claim,
};

/// A place among the running requests; dropping it gives it to the next in line.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Admission>);

/// Places for running requests, and a bounded line before them.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Mutex<Places<oneshot::Sender<Permit>>>,
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

/// One in line; leaves it when dropped.
struct InLine {
    admission: Arc<Admission>,
    number: u64,
}

// === impl Admission ===

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self { places: Mutex::new(Places::new(limits)) })
    }

    /// Other limits from now on: who has a place keeps it, and who waits goes on waiting.
    pub(crate) fn set(self: &Arc<Self>, limits: &Limits) {
        self.places.lock().set(limits);
        self.call();
    }

    pub(crate) fn status(&self) -> QueueStatus {
        self.places.lock().status()
    }

    /// A place now or after waiting in line.
    pub(crate) async fn admit(self: &Arc<Self>, claim: Claim, deadline: Instant) -> Result<Permit, Failure> {
        let (call, called) = oneshot::channel();
        let entry = self.places.lock().enter(claim, call, deadline, Instant::now())?;
        let Entry::InLine { number, until } = entry else { return Ok(Permit(Arc::clone(self))) };
        let in_line = InLine { admission: Arc::clone(self), number };
        let called = timeout_at(until, called).await;
        drop(in_line);
        match called {
            Ok(Ok(permit)) => Ok(permit),
            Err(_) if deadline <= until => Err(Failure::new(
                ErrorCode::DeadlineExceeded,
                "the deadline passed while waiting for a place",
            )),
            Ok(Err(_)) | Err(_) => Err(overloaded("waited too long for a place", RETRY_AFTER)),
        }
    }

    /// A place came free.
    fn release(self: &Arc<Self>) {
        self.places.lock().release();
        self.call();
    }

    /// Gives free places to the next in line. Who has left meanwhile gives it back at once.
    fn call(self: &Arc<Self>) {
        while let Some(call) = self.next() {
            drop(call.send(Permit(Arc::clone(self))));
        }
    }

    fn next(&self) -> Option<oneshot::Sender<Permit>> {
        self.places.lock().call(Instant::now())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.admission.places.lock().leave(self.number);
    }
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
        let status = admission.status();
        assert_eq!((status.running, status.waiting), (0, 0));
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
        assert_eq!(admission.status().running, 0);
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
        assert_eq!(admission.status().running, 0);
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
