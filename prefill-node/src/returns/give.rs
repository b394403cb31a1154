//! Sends KV from the prefix cache; as a favour, within the budget.

use std::{ops::Range, sync::Arc, time::Duration};

use baton_engine::{
    EngineHandle,
    kv::{Hold, PageSpan},
};
use baton_kv_transfer::{PrefillJob, Progress};
use baton_protocol::{BlockHash, ErrorCode, Failure, chain};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{has_spare, is_small};

/// So much of the budget goes at once.
const SLICE: Duration = Duration::from_millis(20);

/// One prompt on its way out of the cache.
pub(crate) struct Give {
    engine: EngineHandle,
    hashes: Vec<BlockHash>,
    /// What the receiver lacks.
    tokens: Range<u32>,
    /// What a favour may take of the road; none where it is no favour.
    budget: Option<u64>,
    progress: mpsc::Sender<Progress>,
}

// === impl Give ===

impl Give {
    pub(crate) fn new(
        engine: EngineHandle,
        job: &PrefillJob,
        budget: Option<u64>,
        progress: mpsc::Sender<Progress>,
    ) -> Self {
        let request = &job.request;
        let hashes = chain(&request.tenant, engine.pool().shape().page_tokens as usize, &request.tokens);
        let tokens = job.have..request.tokens.len() as u32;
        Self { engine, hashes, tokens, budget, progress }
    }

    /// Runs to the end of the prompt, or until pages get short or nobody listens.
    pub(crate) async fn run(self) {
        let end = match self.send().await {
            Ok(()) => Progress::Done,
            Err(failure) => Progress::Failed(failure),
        };
        // Nobody listens when the handoff has ended.
        let _ = self.progress.send(end).await;
    }

    async fn send(&self) -> Result<(), Failure> {
        let gone = |_| Failure::new(ErrorCode::Cancelled, "the handoff has ended");
        let source = self.cached()?;
        let cached_tokens = self.tokens.end;
        let started = Progress::Started { cached_tokens, queue: Duration::ZERO, source: Arc::new(source) };
        self.progress.send(started).await.map_err(gone)?;
        let mut due = Instant::now();
        for first in self.tokens.clone().step_by(self.slice_tokens()) {
            if self.budget.is_some() && !has_spare(&self.engine) {
                return Err(Failure::new(ErrorCode::Overloaded, "pages are needed for other things"));
            }
            let tokens = first..(first + self.slice_tokens() as u32).min(self.tokens.end);
            if let Some(bytes_per_second) = self.budget {
                let bytes = self.engine.pool().shape().token_bytes() * tokens.len();
                due += Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
                sleep_until(due).await;
            }
            let layers = 0..self.engine.pool().shape().layers;
            self.progress.send(Progress::Computed { layers, tokens }).await.map_err(gone)?;
        }
        Ok(())
    }

    /// The prompt's pages, if all of them are still cached.
    fn cached(&self) -> Result<PageSpan, Failure> {
        let pool = self.engine.pool();
        let needed = pool.shape().pages_for(self.tokens.end as usize);
        if self.budget.is_some() && !is_small(&self.engine, needed) {
            return Err(Failure::new(ErrorCode::Overloaded, "too long to be handed back"));
        }
        let pages = pool.match_prefix(&self.hashes);
        if pages.len() < needed {
            return Err(Failure::new(ErrorCode::Unavailable, "not cached any more"));
        }
        let pages = pages.into_iter().map(|page| page.into_hold(Hold::Sending)).collect();
        Ok(PageSpan::new(Arc::clone(pool), pages, 0, self.tokens.end))
    }

    fn slice_tokens(&self) -> usize {
        let Some(bytes_per_second) = self.budget else { return self.tokens.len().max(1) };
        let bytes = bytes_per_second as f64 * SLICE.as_secs_f64();
        ((bytes / self.engine.pool().shape().token_bytes() as f64) as usize).max(1)
    }
}
