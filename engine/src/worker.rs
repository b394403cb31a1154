//! The engine's thread, and how others reach it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use baton_protocol::StepModel;
use parking_lot::{Condvar, Mutex};

use crate::{
    Engine, EngineMetrics, SchedulerConfig, SequenceEvents, SequenceSpec, StepOutcome, SubmitError,
    engine::STALL,
    kv::KvPool,
    sequence::{Origin, Sequence, events, spec::Limits},
};

/// Owns the thread that runs an engine. Dropping it fails what still runs, and joins.
pub struct EngineWorker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Submits sequences to an engine; cheap to clone. Works as long as the engine lives.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// How much an engine has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Answers being computed.
    pub running: usize,
    /// Requests that have not started.
    pub waiting: usize,
    /// Known tokens, of running and waiting ones, whose KV is still to be computed.
    pub waiting_prefill_tokens: usize,
    /// Tokens that running answers attend to, in all.
    pub running_context_tokens: usize,
    /// Prompt tokens that a step takes beside the answers that go on now.
    pub step_prompt_tokens: usize,
}

/// What an engine and its handles share.
pub(crate) struct Shared {
    pub(crate) pool: Arc<KvPool>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) inbox: Inbox,
    pub(crate) step_model: Mutex<StepModel>,
    /// Steps begun and steps ended: odd while one is under way.
    stepping: AtomicU64,
    limits: Limits,
    max_waiting: usize,
    event_buffer: usize,
    layer_groups: usize,
    /// Steps that may be under way.
    steps: usize,
}

/// Sequences on their way to the engine, bounded by `max_waiting`.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct InboxState {
    submitted: VecDeque<Sequence>,
    arrivals: u64,
    /// The worker shall end.
    is_stopping: bool,
    /// The engine is gone.
    is_closed: bool,
}

// === impl EngineWorker ===

impl EngineWorker {
    /// Starts an engine's thread.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(engine: Engine) -> (Self, EngineHandle) {
        let handle = engine.handle();
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(engine));
        let thread = thread.expect("the system has a thread for the engine");
        (Self { shared: Arc::clone(&handle.shared), thread: Some(thread) }, handle)
    }

    /// Fails what still runs, and joins the thread.
    pub fn shutdown(self) {}
}

impl Drop for EngineWorker {
    fn drop(&mut self) {
        self.shared.inbox.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

fn run(mut engine: Engine) {
    let shared = Arc::clone(&engine.handle().shared);
    loop {
        shared.stepping.fetch_add(1, Ordering::Relaxed);
        let outcome = engine.step();
        shared.stepping.fetch_add(1, Ordering::Relaxed);
        let wait = match outcome {
            Ok(StepOutcome::Ran) => Some(Duration::ZERO),
            // Pages and readers do not knock; look again soon.
            Ok(StepOutcome::Stalled) => Some(STALL),
            Ok(StepOutcome::Idle) => None,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "engine stopped");
                return;
            }
        };
        if !shared.inbox.wait(wait) {
            return;
        }
    }
}

// === impl EngineHandle ===

impl EngineHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The engine's page pool.
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.shared.pool
    }

    /// Its metrics, to be registered once.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// Queues a request. Dropping what comes back cancels it.
    ///
    /// # Errors
    /// When too many wait, it could never run, or the engine has stopped.
    pub fn submit(&self, spec: SequenceSpec) -> Result<SequenceEvents, SubmitError> {
        spec.check(&self.shared.limits, self.shared.pool.shape())?;
        // Started, the cached part, every layer group, a token and an end for
        // each choice in each step under way, what one reads of the prompt, the terminal event,
        // and one place for a failure.
        let room = 5 + self.shared.layer_groups + 2 * self.shared.steps * spec.goal.choices().count();
        let (outbox, events) = events::channel(room, self.shared.event_buffer);
        let origin = Arc::new(Origin::new(&spec, self.shared.limits.context_tokens, outbox));
        self.shared.submit(spec, origin)?;
        Ok(events)
    }

    /// How much the engine has to do.
    pub fn load(&self) -> EngineLoad {
        let state = self.shared.inbox.state.lock();
        let tokens: usize = state.submitted.iter().map(Sequence::remaining).sum();
        let read = |gauge: &prometheus_client::metrics::gauge::Gauge| gauge.get().max(0) as usize;
        EngineLoad {
            running: read(&self.shared.metrics.running),
            waiting: read(&self.shared.metrics.waiting) + state.submitted.len(),
            waiting_prefill_tokens: read(&self.shared.metrics.waiting_prefill_tokens) + tokens,
            running_context_tokens: read(&self.shared.metrics.running_context_tokens),
            step_prompt_tokens: read(&self.shared.metrics.step_prompt_tokens),
        }
    }

    /// Which step is under way, if one is.
    pub fn step_under_way(&self) -> Option<u64> {
        Some(self.shared.stepping.load(Ordering::Relaxed)).filter(|number| number % 2 == 1)
    }

    /// How long its steps take, as far as is known.
    pub fn step_model(&self) -> StepModel {
        *self.shared.step_model.lock()
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(
        pool: Arc<KvPool>,
        metrics: EngineMetrics,
        limits: Limits,
        config: &SchedulerConfig,
        steps: usize,
    ) -> Self {
        let layer_groups = config.layer_groups.min(pool.shape().layers).max(1) as usize;
        Self {
            pool,
            metrics,
            inbox: Inbox::default(),
            step_model: Mutex::default(),
            stepping: AtomicU64::new(0),
            limits,
            max_waiting: config.max_waiting,
            event_buffer: config.event_buffer,
            layer_groups,
            steps,
        }
    }

    fn submit(&self, spec: SequenceSpec, origin: Arc<Origin>) -> Result<(), SubmitError> {
        let mut state = self.inbox.state.lock();
        if state.is_closed {
            return Err(SubmitError::Stopped);
        }
        let waiting = self.metrics.waiting.get().max(0) as usize + state.submitted.len();
        // Whoever brings pages is bounded by the pool, and has cost a prefill already.
        let brings_pages = matches!(spec.start, crate::StartFrom::Adopted { .. });
        if waiting >= self.max_waiting && !brings_pages {
            return Err(SubmitError::Overloaded { waiting, limit: self.max_waiting });
        }
        state.arrivals += 1;
        let arrival = state.arrivals;
        state.submitted.push_back(Sequence::new(arrival, spec, origin));
        self.inbox.changed.notify_one();
        Ok(())
    }
}

// === impl Inbox ===

impl Inbox {
    /// Everything submitted since; none when closed.
    pub(crate) fn take(&self) -> Option<VecDeque<Sequence>> {
        let mut state = self.state.lock();
        (!state.is_closed).then(|| std::mem::take(&mut state.submitted))
    }

    /// Refuses all that comes from now on, and returns what came before.
    pub(crate) fn close(&self) -> VecDeque<Sequence> {
        let mut state = self.state.lock();
        state.is_closed = true;
        std::mem::take(&mut state.submitted)
    }

    fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.changed.notify_one();
    }

    /// Waits until there is something to receive, or the time is over. False when the worker shall end.
    fn wait(&self, time: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        let is_quiet = |state: &mut InboxState| state.submitted.is_empty() && !state.is_stopping;
        match time {
            None => self.changed.wait_while(&mut state, is_quiet),
            Some(Duration::ZERO) => {}
            Some(time) => {
                self.changed.wait_while_for(&mut state, is_quiet, time);
            }
        }
        !state.is_stopping
    }
}
