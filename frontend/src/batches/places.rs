//! How many lines run. Other calls come first.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::{Mutex, Notify};

/// Places for lines of all batches, given in turn.
pub struct Places {
    limit: usize,
    running: AtomicUsize,
    left: Notify,
    /// Whose turn it is: whoever waits longest.
    turn: Mutex<()>,
}

/// A place; free when dropped.
pub struct Place<'a>(&'a Places);

/// Between two looks at what else runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

// === impl Places ===

impl Places {
    pub fn new(limit: usize) -> Self {
        let (running, left, turn) = (AtomicUsize::new(0), Notify::new(), Mutex::new(()));
        Self { limit, running, left, turn }
    }

    /// A place, when the lines that run and the `others` leave one. The first is there always.
    pub async fn take(&self, others: impl Fn() -> usize) -> Place<'_> {
        let _turn = self.turn.lock().await;
        while self.running.load(Ordering::Relaxed) >= self.limit.saturating_sub(others()).max(1) {
            // Lines say when they end, other calls do not.
            drop(tokio::time::timeout(LOOK_INTERVAL, self.left.notified()).await);
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn other_calls_take_all_places_but_one() {
        let places = Places::new(3);
        let others = AtomicUsize::new(2);
        let busy = || others.load(Ordering::Relaxed);
        let first = places.take(busy).now_or_never().unwrap();
        assert!(places.take(busy).now_or_never().is_none());
        others.store(1, Ordering::Relaxed);
        let second = places.take(busy).now_or_never().unwrap();
        assert!(places.take(busy).now_or_never().is_none());
        others.store(100, Ordering::Relaxed);
        drop((first, second));
        let third = places.take(busy).now_or_never().unwrap();
        assert!(places.take(busy).now_or_never().is_none());
        let (_fourth, ()) = tokio::join!(places.take(busy), async { drop(third) });
    }
}
