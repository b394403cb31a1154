//! Runs prompts and streams their KV pages out.
//!
//! - [`PrefillNode`]: takes prompts from sessions and submits them to the engine
//! - `passage`: one prompt's way: what the engine reports, said in the words of a handoff
//! - `rescue`: what a broken prefill node had sent, taken over instead of computed again
//! - [`Returns`]: KV that comes back when a turn has ended
//! - [`PrefillMetrics`]: what this node took and refused

mod metrics;
mod passage;
mod rescue;
mod returns;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use baton_engine::{EngineHandle, Goal, SequenceSpec, StartFrom, SubmitError};
use baton_kv_transfer::{
    BusyReason, PrefillGuard, PrefillJob, Prefiller, Progress, Queue, Returned, Sessions,
};
use baton_protocol::{Intake, Request};
use baton_traces::Span;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use metrics::PrefillMetrics;
use passage::{FirstTokens, Passage};
use rescue::Rescue;
use returns::Give;
pub use returns::Returns;

/// What a prefill node admits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefillConfig {
    /// Prompts at once, waiting ones included. The engine's own queue is shared
    /// with local requests of the node; this is the handoffs' part of it.
    pub max_handoffs: usize,
}

/// One node's prefill role over its engine. Sessions call it as [`Prefiller`].
pub struct PrefillNode {
    engine: EngineHandle,
    sessions: Arc<Sessions>,
    room: Arc<Semaphore>,
    intake: Mutex<Intake>,
    /// None: KV is neither handed back nor taken.
    returns: Option<Returns>,
    passages: TaskTracker,
    metrics: PrefillMetrics,
}

/// Advice to decode nodes that find no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === impl PrefillConfig ===

impl Default for PrefillConfig {
    fn default() -> Self {
        Self { max_handoffs: 256 }
    }
}

// === impl PrefillNode ===

impl PrefillNode {
    /// A node that takes prompts until it drains.
    pub fn new(
        engine: EngineHandle,
        sessions: Arc<Sessions>,
        config: &PrefillConfig,
        returns: Option<Returns>,
    ) -> Arc<Self> {
        Arc::new(Self {
            engine,
            sessions,
            room: Arc::new(Semaphore::new(config.max_handoffs.clamp(1, Semaphore::MAX_PERMITS))),
            intake: Mutex::default(),
            returns,
            passages: TaskTracker::new(),
            metrics: PrefillMetrics::default(),
        })
    }

    /// Takes new prompts from now on, or refuses them. What it fetches is given up unless it takes them.
    pub fn set_intake(&self, intake: Intake) {
        *self.intake.lock() = intake;
        if intake != Intake::Open {
            self.returns.iter().for_each(Returns::stop);
        }
        if intake == Intake::Closed {
            self.passages.close();
        } else {
            self.passages.reopen();
        }
    }

    /// Refuses new prompts from now on and waits until the admitted ones have
    /// ended or were given up by their sessions. Can be called again.
    pub async fn drain(&self) {
        self.set_intake(Intake::Closed);
        self.passages.wait().await;
    }

    /// Whether it takes new prompts.
    pub fn intake(&self) -> Intake {
        *self.intake.lock()
    }

    /// Prompts that it has.
    pub fn prompts(&self) -> usize {
        self.passages.len()
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &PrefillMetrics {
        &self.metrics
    }

    fn busy(&self, label: &'static str, reason: &str) -> BusyReason {
        self.metrics.refuse(label);
        BusyReason { eta: RETRY_AFTER, reason: reason.to_owned() }
    }
}

impl Prefiller for PrefillNode {
    fn start(&self, job: PrefillJob, progress: mpsc::Sender<Progress>) -> Result<PrefillGuard, BusyReason> {
        let intake = self.intake();
        // A cache can be asked whatever the roles.
        if let Some(refusal) = intake.refusal().filter(|_| !job.from_cache || intake == Intake::Closed) {
            let label = if intake == Intake::Moved { "moved" } else { "draining" };
            return Err(self.busy(label, &refusal.message));
        }
        if job.from_cache && self.sessions.offers(&job.id) {
            let give = Give::new(self.engine.clone(), &job, None, progress);
            return Ok(Box::new(AbortOnDropHandle::new(self.passages.spawn(give.run()))));
        }
        if job.from_cache {
            let Some(returns) = &self.returns else {
                return Err(self.busy("returns", "no KV is handed back here"));
            };
            return returns.give(&job, progress);
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(self.busy("full", "too many prompts"));
        };
        let rescue = Rescue::of(&job, &self.engine, &self.sessions);
        let passage = Passage {
            progress,
            pool: Arc::clone(self.engine.pool()),
            tokens: job.request.tokens.len() as u32,
            first: FirstTokens::new(&job.sample),
            submitted: Instant::now(),
            span: Span::part("prefill", &job.request.trace),
            metrics: self.metrics.clone(),
            outcome: None,
            _room: room,
        };
        let sequence = sequence(job);
        let task = if let Some(rescue) = rescue {
            self.passages.spawn(passage.run_after(rescue, self.engine.clone(), sequence))
        } else {
            match self.engine.submit(sequence) {
                Ok(events) => self.passages.spawn(passage.run(events)),
                Err(SubmitError::Overloaded { .. }) => return Err(self.busy("engine", "too many sequences")),
                Err(error) => self.passages.spawn(passage.refuse(error)),
            }
        };
        Ok(Box::new(AbortOnDropHandle::new(task)))
    }

    fn returned(&self, kv: Returned) {
        if let Some(returns) = self.returns.as_ref().filter(|_| self.intake() == Intake::Open) {
            returns.fetch(kv, &self.metrics);
        }
    }

    fn queue(&self) -> Queue {
        Queue { position: self.engine.load().waiting as u32, eta: Duration::ZERO }
    }
}

/// The sequence that computes a prompt and draws its next tokens.
fn sequence(job: PrefillJob) -> SequenceSpec {
    let Request { id, tenant, tokens, sampling, stop, logprobs, top_logprobs, .. } = job.request;
    SequenceSpec {
        request: id,
        tenant,
        tokens: tokens.into(),
        prompt_tokens: job.prompt_tokens as usize,
        sampling,
        stop,
        logprobs,
        top_logprobs,
        // Decode nodes compute a prompt themselves if they are to tell of its tokens.
        prompt_logprobs: None,
        goal: Goal::Prefill { sample: job.sample },
        start: StartFrom::Cold,
        deadline: Instant::now().checked_add(job.deadline),
        itl: None,
    }
}

#[cfg(test)]
mod tests;
