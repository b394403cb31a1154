//! One step: plan, forward, sample, commit.
//!
//! - `draw`: what a step gave, and the tokens drawn from it
//! - `ahead`: steps enqueued before the one before has ended

mod ahead;
mod draw;

use std::{
    collections::HashMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{ErrorCode, Failure};

use crate::{
    ChoiceSpec, EngineConfig, EngineError, EngineHandle, EngineMetrics, SequenceEvent,
    backend::{Backend, BackendError},
    batch::{Reading, Row, Rows},
    guide::Guides,
    kv::{IntegrityError, KvPool},
    scheduler::{Chunk, Plan, Scheduler},
    sequence::{Sequence, spec::Limits},
    worker::Shared,
};
use ahead::Ahead;
use draw::{Drawn, Place, Rules, Told};

/// A backend, its page pool and its sequences. Runs on whatever thread calls
/// [`step`](Self::step); see [`EngineWorker`](crate::EngineWorker).
pub struct Engine {
    backend: Box<dyn Backend>,
    pool: Arc<KvPool>,
    scheduler: Scheduler,
    rules: Rules,
    guides: Guides,
    layer_groups: u32,
    shared: Arc<Shared>,
    ahead: Ahead,
    books: Books,
}

/// When the pool's books are checked: when the engine falls idle, and seldom enough that it costs
/// next to nothing where it falls idle after each short request.
struct Books {
    /// Whether they were found in order since the last step that changed them.
    is_checked: bool,
    not_before: Instant,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// New tokens were computed.
    Ran,
    /// There are sequences, but none can go on now: pages are held by
    /// handoffs, or readers are slow.
    Stalled,
    /// There are no sequences.
    Idle,
}

// === impl Engine ===

impl Engine {
    /// An engine with an empty pool and no sequences.
    ///
    /// # Errors
    /// When the backend has no memory for the pool.
    pub fn new(mut backend: Box<dyn Backend>, mut config: EngineConfig) -> Result<Self, BackendError> {
        config.scheduler.max_batch_tokens = config.scheduler.batch_tokens(&*backend);
        let pool = KvPool::over(backend.allocate(config.pages)?, config.pool());
        let shape = pool.shape();
        let context_tokens = config.context_tokens.min(config.pages * shape.page_tokens as usize);
        let has_text = config.text.is_some();
        let limits = Limits { vocab_tokens: backend.vocab_tokens(), context_tokens, has_text };
        let layer_groups = config.scheduler.layer_groups.clamp(1, shape.layers.max(1));
        let metrics = EngineMetrics::new(&pool);
        let guides = Guides::new(config.text, config.scheduler.grammar_threads);
        let scheduler = Scheduler::new(config.scheduler.clone(), Arc::clone(&pool), metrics.clone());
        let vocab_tokens = backend.vocab_tokens();
        let (eos_tokens, told) = (config.eos_tokens, Told::default());
        let rules = Rules { eos_tokens, vocab_tokens, metrics: metrics.clone(), told };
        let steps = if backend.runs_ahead() { 2 } else { 1 };
        let shared = Arc::new(Shared::new(Arc::clone(&pool), metrics, limits, &config.scheduler, steps));
        let ahead = Ahead::default();
        Ok(Self { backend, pool, scheduler, rules, guides, layer_groups, shared, ahead, books: Books::new() })
    }

    /// How others reach it.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle::new(Arc::clone(&self.shared))
    }

    /// Computes one batch, if there is anything to compute.
    ///
    /// # Errors
    /// When the engine cannot go on. All sequences have been told then.
    pub fn step(&mut self) -> Result<StepOutcome, EngineError> {
        self.step_at(Instant::now())
    }

    /// As [`step`](Self::step); deadlines are compared with `now`.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_at(&mut self, now: Instant) -> Result<StepOutcome, EngineError> {
        self.receive()?;
        self.scheduler.follow_grammars(&mut self.guides);
        self.ahead.park(self.scheduler.sweep(now));
        let is_ahead = self.ahead.is_busy();
        let plan = self.scheduler.plan(is_ahead);
        match () {
            () if self.can_enqueue(&plan) => {
                self.enqueue(plan)?;
                if is_ahead {
                    self.collect()?;
                }
            }
            () if is_ahead => self.collect()?,
            () if plan.chunks.is_empty() => return self.rest(),
            () => self.run(plan)?,
        }
        Ok(StepOutcome::Ran)
    }

    fn receive(&mut self) -> Result<(), EngineError> {
        let submitted = self.shared.inbox.take().ok_or(EngineError::Stopped)?;
        self.scheduler.push(submitted);
        Ok(())
    }

    /// Nothing to compute: a time to check the pool's books.
    fn rest(&mut self) -> Result<StepOutcome, EngineError> {
        if !self.scheduler.is_empty() {
            self.scheduler.look_for_masks(STALL, true);
            return Ok(StepOutcome::Stalled);
        }
        if let Err(error) = self.books.check(&self.pool) {
            self.stop(&Failure::new(
                ErrorCode::Internal,
                "the engine stopped: its page pool is inconsistent",
            ));
            return Err(EngineError::Integrity(error));
        }
        Ok(StepOutcome::Idle)
    }

    /// Computes the plan's step, waiting for it.
    fn run(&mut self, plan: Plan) -> Result<(), EngineError> {
        let began = Instant::now();
        self.scheduler.begins(&plan, began);
        match self.forward(&plan) {
            Ok(rows) => {
                self.learn(&plan, began.elapsed());
                self.commit(plan, rows);
            }
            Err(error) => self.blame(&plan, error)?,
        }
        Ok(())
    }

    /// Notes how long a step took.
    fn learn(&mut self, plan: &Plan, time: Duration) {
        *self.shared.step_model.lock() = self.scheduler.learn(plan, time);
        self.shared.metrics.step.observe(time.as_secs_f64());
    }

    /// Runs the plan's tokens through the backend; reports prompts of handoffs
    /// layer group by layer group while later ones compute.
    fn forward(&mut self, plan: &Plan) -> Result<Rows, BackendError> {
        self.books.is_checked = false;
        let pages = self.scheduler.page_ids(plan);
        let mut batch = self.scheduler.batch(plan, &pages);
        let layers = self.pool.shape().layers;
        let groups = self.layer_groups;
        let mut layer_done = |layer: usize| {
            let Some(layers) = group_ending_with(layer as u32, layers, groups) else { return };
            let prompts = self.scheduler.planned(plan).filter(|(_, sequence)| sequence.origin.is_prefill);
            for (chunk, sequence) in prompts {
                let tokens = chunk.tokens.start as u32..chunk.tokens.end as u32;
                sequence.origin.emit(SequenceEvent::Computed { layers: layers.clone(), tokens });
            }
        };
        (batch.draws, batch.shapes) = self.rules.on_backend(&*self.backend, self.scheduler.planned(plan));
        self.backend.draw(&batch, &mut layer_done)
    }

    /// Books what was computed, draws tokens, and lets sequences part or end.
    fn commit(&mut self, plan: Plan, mut rows: Rows) {
        let mut read: HashMap<usize, Reading> = rows.logits.read.drain(..).collect();
        let mut rows = rows.iter();
        for (index, chunk) in plan.chunks.into_iter().enumerate() {
            let row = if chunk.wants_logits { rows.next() } else { None };
            let Some(mut sequence) = self.scheduler.take(chunk.key) else { continue };
            count_prompt_tokens(&self.shared.metrics, &chunk, &sequence);
            if let Some(asked) = sequence.read(&chunk.tokens)
                && !sequence.take_in(&asked, read.remove(&index))
            {
                continue;
            }
            sequence.computed_to(chunk.tokens.end, &self.pool);
            match sequence.remaining() {
                0 if sequence.origin.is_prefill => self.finish_prefill(&sequence, row),
                0 if sequence.origin.is_embedding => sequence.embed(),
                0 => self.go_on(sequence, row),
                _ => self.scheduler.run(sequence),
            }
        }
        self.rules.told.tell();
        self.scheduler.count();
    }

    /// Every known token is computed: each choice replays what it knows, or draws.
    fn go_on(&mut self, sequence: Sequence, row: Option<Row<'_>>) {
        let mut left = Some(sequence);
        while let Some(sequence) = left {
            let (mut one, rest) = sequence.part(self.pool.shape());
            left = rest;
            if one.replay() || self.draw(&mut one, row) {
                self.scheduler.run(one);
            }
        }
    }

    /// Draws a sequence's next token. False when it ends.
    fn draw(&self, sequence: &mut Sequence, row: Option<Row<'_>>) -> bool {
        let drawn = self.rules.draw(Place::of(sequence, &sequence.tokens, sequence.choices[0].choice), row);
        let Drawn::Token(id) = drawn else { return false };
        sequence.tokens.push(id);
        true
    }

    /// A prompt for another node is computed: draws one token for each choice.
    fn finish_prefill(&self, sequence: &Sequence, row: Option<Row<'_>>) {
        let Sequence { origin, tokens, choices, .. } = sequence;
        let draw = |choice: &ChoiceSpec| self.rules.draw(Place::of(sequence, tokens, choice.choice), row);
        if choices.iter().map(draw).all(|drawn| !matches!(drawn, Drawn::Nothing)) {
            self.rules.told.push(origin, SequenceEvent::Prefilled);
        }
    }

    /// A step failed: one sequence's fault ends its request, the others try again.
    fn blame(&mut self, plan: &Plan, error: BackendError) -> Result<(), EngineError> {
        let (index, code) = match &error {
            BackendError::ForeignKv { sequence, .. } => (*sequence, ErrorCode::PeerLost),
            BackendError::Token { sequence, .. } => (*sequence, ErrorCode::InvalidRequest),
            BackendError::Device(_) => {
                self.stop(&Failure::new(ErrorCode::Unavailable, "the engine stopped: its device failed"));
                return Err(EngineError::Backend(error));
            }
        };
        let Some(key) = plan.chunks.get(index).map(|chunk| chunk.key) else {
            self.stop(&Failure::new(ErrorCode::Internal, "the engine stopped: a step failed"));
            return Err(EngineError::Backend(error));
        };
        // It may have gone while the step was under way, and its pages be in the cache still.
        let taken = self.scheduler.take(key);
        if let Some(sequence) = taken.as_ref().or_else(|| self.ahead.parked(key)) {
            tracing::warn!(request = %sequence.origin.request, %error, "sequence failed");
            // What it computed or adopted is in doubt: nobody else shall find it.
            self.pool.forget(&sequence.pages);
            sequence.origin.fail(Failure::new(code, format!("the request's kv is not usable: {error}")));
        }
        self.ahead.park(taken);
        Ok(())
    }

    fn stop(&mut self, failure: &Failure) {
        for sequence in self.shared.inbox.close() {
            sequence.origin.fail(failure.clone());
        }
        self.scheduler.fail_all(failure);
        self.ahead = Ahead::default();
    }
}

// === impl Books ===

impl Books {
    fn new() -> Self {
        Self { is_checked: false, not_before: Instant::now() }
    }

    fn check(&mut self, pool: &KvPool) -> Result<(), IntegrityError> {
        let now = Instant::now();
        if self.is_checked || now < self.not_before {
            return Ok(());
        }
        self.is_checked = true;
        let checked = pool.check_integrity();
        self.not_before = now + CHECK_PAUSE * now.elapsed();
        checked
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Who has a token coming gets it before the end; a failure is told by `stop`.
        let _ = self.drain();
        self.stop(&Failure::new(ErrorCode::Unavailable, "the engine stopped"));
    }
}

/// The layers of the group that ends with `layer`, if one does.
fn group_ending_with(layer: u32, layers: u32, groups: u32) -> Option<Range<u32>> {
    let bound = |group: u32| (u64::from(group) * u64::from(layers) / u64::from(groups)) as u32;
    let group = (1..=groups).find(|group| bound(*group) == layer + 1)?;
    Some(bound(group - 1)..layer + 1)
}

/// Counts what a chunk computes of the known tokens, not a token that the step before drew.
fn count_prompt_tokens(metrics: &EngineMetrics, chunk: &Chunk, sequence: &Sequence) {
    if chunk.tokens.len() > 1 || chunk.tokens.end <= sequence.origin.prompt_tokens {
        metrics.prompt_tokens.inc_by(chunk.tokens.len() as u64);
    }
}

/// From one check of the pool's books to the next, in times that a check takes: a hundredth of
/// the time goes into them at most.
const CHECK_PAUSE: u32 = 100;

/// Time after which a stalled engine looks again.
pub(crate) const STALL: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
