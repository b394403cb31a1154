//! KV that comes back when a turn has ended: a decode node offers prompt and
//! answer to whoever prefilled it, and that node fetches what it lacks into its
//! prefix cache, where the next turn finds it.
//!
//! It is a favour, and gives way: one return at a time, no faster than the
//! budget, nothing computed for it, at most an eighth of a pool, and given up
//! when pages get short on either side. What is lost costs a prefill that would
//! have been needed anyway.
//!
//! - `give`: the decode node's end, which sends from its prefix cache
//! - `fetch`: the prefill node's end, which takes it in

mod fetch;
mod give;

use std::sync::Arc;

use baton_engine::EngineHandle;
use baton_kv_transfer::{BusyReason, PrefillGuard, PrefillJob, Progress, Returned, Sessions};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{PrefillMetrics, RETRY_AFTER};
pub(crate) use fetch::Fetch;
pub(crate) use give::Give;

/// Returns that may wait for their turn, in each direction.
const WAITING: usize = 16;

/// A return holds no more than this share of a pool, and gives way when less is spare.
const SHARE: u64 = 8;

/// Both ends of a node's returns. Dropping it gives up all that is under way.
pub struct Returns {
    engine: EngineHandle,
    sessions: Arc<Sessions>,
    bytes_per_second: u64,
    giving: Line,
    fetching: Line,
    fetches: Mutex<JoinSet<()>>,
}

/// A line of bounded length before a single place.
#[derive(Clone)]
struct Line {
    waiting: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

// === impl Returns ===

impl Returns {
    /// Returns of at most so many bytes a second; none when that is 0.
    pub fn new(engine: &EngineHandle, sessions: &Arc<Sessions>, bytes_per_second: u64) -> Option<Self> {
        (bytes_per_second > 0).then(|| Self {
            engine: engine.clone(),
            sessions: Arc::clone(sessions),
            bytes_per_second,
            giving: Line::default(),
            fetching: Line::default(),
            fetches: Mutex::default(),
        })
    }

    /// Sends what is cached of a prompt, and computes nothing.
    pub(crate) fn give(
        &self,
        job: &PrefillJob,
        progress: mpsc::Sender<Progress>,
    ) -> Result<PrefillGuard, BusyReason> {
        let busy = || BusyReason { eta: RETRY_AFTER, reason: "too many returns".to_owned() };
        let place = Arc::clone(&self.giving.waiting).try_acquire_owned().map_err(|_| busy())?;
        let give = Give::new(self.engine.clone(), job, Some(self.bytes_per_second), progress);
        let turn = Arc::clone(&self.giving.turn);
        #[expect(clippy::disallowed_methods, reason = "owned by the handoff's guard")]
        let task = tokio::spawn(async move {
            let _place = place;
            if let Ok(_turn) = turn.acquire().await {
                give.run().await;
            }
        });
        Ok(Box::new(AbortOnDropHandle::new(task)))
    }

    /// Fetches KV for the prefix cache when it is its turn; forgets it when too much waits.
    pub(crate) fn fetch(&self, kv: Returned, metrics: &PrefillMetrics) {
        let Ok(place) = Arc::clone(&self.fetching.waiting).try_acquire_owned() else {
            return metrics.returned("full", 0);
        };
        let (engine, sessions) = (self.engine.clone(), Arc::clone(&self.sessions));
        let fetch = Fetch { engine, sessions, kv, is_favour: true };
        let (turn, metrics) = (Arc::clone(&self.fetching.turn), metrics.clone());
        let mut fetches = self.fetches.lock();
        while fetches.try_join_next().is_some() {}
        fetches.spawn(async move {
            let _place = place;
            if let Ok(_turn) = turn.acquire().await {
                let (outcome, tokens) = fetch.run().await;
                metrics.returned(outcome, tokens);
            }
        });
    }

    /// Gives up all fetches.
    pub(crate) fn stop(&self) {
        self.fetches.lock().abort_all();
    }
}

// === impl Line ===

impl Default for Line {
    fn default() -> Self {
        Self { waiting: Arc::new(Semaphore::new(WAITING)), turn: Arc::new(Semaphore::new(1)) }
    }
}

/// Whether so many pages are little enough for a favour.
fn is_small(engine: &EngineHandle, pages: usize) -> bool {
    pages as u64 <= engine.pool().counts().total / SHARE
}

/// Whether there are pages that nobody is waiting for.
fn has_spare(engine: &EngineHandle) -> bool {
    let pool = engine.pool();
    let (counts, waiting) = (pool.counts(), engine.load().waiting_prefill_tokens);
    let wanted = counts.promised + pool.shape().pages_for(waiting) as u64;
    counts.free + counts.cached >= wanted + counts.total / SHARE
}
