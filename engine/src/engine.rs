//! One step: plan, forward, sample, commit.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{ErrorCode, Failure, FinishReason, Token};

use crate::{
    EngineConfig, EngineError, EngineHandle, EngineMetrics, SequenceEvent,
    backend::{Backend, BackendError},
    batch::{Batch, BatchSequence, Logits},
    kv::{KvPool, PageId},
    sampler,
    scheduler::{Chunk, Plan, Scheduler},
    sequence::{Origin, Sequence, spec::Limits},
    worker::Shared,
};

/// A backend, its page pool and its sequences. Runs on whatever thread calls
/// [`step`](Self::step); see [`EngineWorker`](crate::EngineWorker).
pub struct Engine {
    backend: Box<dyn Backend>,
    pool: Arc<KvPool>,
    scheduler: Scheduler,
    rules: Rules,
    layer_groups: u32,
    shared: Arc<Shared>,
    /// Whether the pool was found in order since the last step that changed it.
    is_checked: bool,
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

/// How tokens are drawn, besides what the request says.
struct Rules {
    eos_tokens: Vec<u32>,
}

/// What a step gave for each sequence that draws, in batch order.
enum Rows {
    Logits(Logits),
    /// All of them draw nothing but the likeliest token.
    Likeliest(Vec<Option<u32>>),
}

/// What one sequence draws from.
#[derive(Clone, Copy)]
enum Row<'a> {
    Logits(&'a [f32]),
    Likeliest(Option<u32>),
}

/// What came of a draw.
enum Drawn {
    Token {
        token: Token,
        end: Option<FinishReason>,
    },
    /// A stop token, which is not emitted.
    Stop,
    /// The model returned nothing to draw from.
    Nothing,
}

// === impl Engine ===

impl Engine {
    /// An engine with an empty pool and no sequences.
    ///
    /// # Errors
    /// When the backend has no memory for the pool.
    pub fn new(mut backend: Box<dyn Backend>, config: EngineConfig) -> Result<Self, BackendError> {
        let pool = KvPool::over(backend.allocate(config.pages)?, config.pool());
        let shape = pool.shape();
        let context_tokens = config.context_tokens.min(config.pages * shape.page_tokens as usize);
        let limits = Limits { vocab_tokens: backend.vocab_tokens(), context_tokens };
        let layer_groups = config.scheduler.layer_groups.clamp(1, shape.layers.max(1));
        let metrics = EngineMetrics::new(&pool);
        let scheduler = Scheduler::new(config.scheduler.clone(), Arc::clone(&pool), metrics.clone());
        let shared = Arc::new(Shared::new(Arc::clone(&pool), metrics, limits, &config.scheduler));
        let rules = Rules { eos_tokens: config.eos_tokens };
        Ok(Self { backend, pool, scheduler, rules, layer_groups, shared, is_checked: false })
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
        self.scheduler.sweep(now);
        let plan = self.scheduler.plan();
        if plan.chunks.is_empty() {
            return self.rest();
        }
        let began = Instant::now();
        match self.forward(&plan) {
            Ok(rows) => {
                self.scheduler.learn(&plan, began.elapsed());
                self.commit(plan, &rows);
            }
            Err(error) => self.blame(&plan, error)?,
        }
        self.shared.metrics.step.observe(began.elapsed().as_secs_f64());
        Ok(StepOutcome::Ran)
    }

    fn receive(&mut self) -> Result<(), EngineError> {
        let submitted = self.shared.inbox.take().ok_or(EngineError::Stopped)?;
        for sequence in submitted {
            self.scheduler.push(sequence);
        }
        Ok(())
    }

    /// Nothing to compute. The pool's books are checked each time the engine falls idle.
    fn rest(&mut self) -> Result<StepOutcome, EngineError> {
        if !self.scheduler.is_empty() {
            return Ok(StepOutcome::Stalled);
        }
        if !std::mem::replace(&mut self.is_checked, true)
            && let Err(error) = self.pool.check_integrity()
        {
            self.stop(&Failure::new(
                ErrorCode::Internal,
                "the engine stopped: its page pool is inconsistent",
            ));
            return Err(EngineError::Integrity(error));
        }
        Ok(StepOutcome::Idle)
    }

    /// Runs the plan's tokens through the backend; reports prompts of handoffs
    /// layer group by layer group while later ones compute.
    fn forward(&mut self, plan: &Plan) -> Result<Rows, BackendError> {
        self.is_checked = false;
        let planned: Vec<(&Chunk, &Sequence, Vec<PageId>)> = plan
            .chunks
            .iter()
            .filter_map(|chunk| {
                self.scheduler.get(chunk.key).map(|sequence| (chunk, sequence, sequence.page_ids()))
            })
            .collect();
        let sequences = planned.iter().map(|(chunk, sequence, pages)| BatchSequence {
            tokens: &sequence.tokens,
            start: chunk.tokens.start,
            end: chunk.tokens.end,
            pages,
            wants_logits: chunk.wants_logits,
        });
        let batch = Batch { sequences: sequences.collect() };
        let layers = self.pool.shape().layers;
        let groups = self.layer_groups;
        let mut layer_done = |layer: usize| {
            let Some(layers) = group_ending_with(layer as u32, layers, groups) else { return };
            for (chunk, sequence, _) in planned.iter().filter(|(_, sequence, _)| sequence.origin.is_prefill) {
                let tokens = chunk.tokens.start as u32..chunk.tokens.end as u32;
                sequence.origin.emit(SequenceEvent::Computed { layers: layers.clone(), tokens });
            }
        };
        let draws = planned.iter().filter(|(chunk, ..)| chunk.wants_logits);
        if draws.map(|(_, sequence, _)| sequence).all(|sequence| self.rules.is_plain(sequence)) {
            return self.backend.greedy(&batch, &mut layer_done).map(Rows::Likeliest);
        }
        self.backend.forward(&batch, &mut layer_done).map(Rows::Logits)
    }

    /// Books what was computed, draws tokens, and lets sequences part or end.
    fn commit(&mut self, plan: Plan, rows: &Rows) {
        let mut rows = rows.iter();
        for chunk in plan.chunks {
            let row = if chunk.wants_logits { rows.next() } else { None };
            let Some(mut sequence) = self.scheduler.take(chunk.key) else { continue };
            if chunk.tokens.len() > 1 || chunk.tokens.end <= sequence.origin.prompt_tokens {
                self.shared.metrics.prompt_tokens.inc_by(chunk.tokens.len() as u64);
            }
            sequence.computed_to(chunk.tokens.end, &self.pool);
            match sequence.remaining() {
                0 if sequence.origin.is_prefill => self.finish_prefill(&sequence, row),
                0 => self.go_on(sequence, row),
                _ => self.scheduler.run(sequence),
            }
        }
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
        let choice = sequence.choices[0].choice;
        match self.rules.draw(sequence, choice, row) {
            Drawn::Token { token, end } => {
                self.shared.metrics.generation_tokens.inc();
                sequence.tokens.push(token.id);
                sequence.origin.emit(SequenceEvent::Token(token));
                if let Some(reason) = end {
                    sequence.origin.emit(SequenceEvent::Finished { choice, reason });
                }
                end.is_none()
            }
            Drawn::Stop => {
                sequence.origin.emit(SequenceEvent::Finished { choice, reason: FinishReason::Stop });
                false
            }
            Drawn::Nothing => {
                fail_without_logits(&sequence.origin);
                false
            }
        }
    }

    /// A prompt for another node is computed: draws one token for each choice.
    fn finish_prefill(&self, sequence: &Sequence, row: Option<Row<'_>>) {
        let origin = &sequence.origin;
        for choice in sequence.choices.iter().map(|choice| choice.choice) {
            match self.rules.draw(sequence, choice, row) {
                Drawn::Token { token, end } => {
                    self.shared.metrics.generation_tokens.inc();
                    origin.emit(SequenceEvent::Token(token));
                    if let Some(reason) = end {
                        origin.emit(SequenceEvent::Finished { choice, reason });
                    }
                }
                Drawn::Stop => origin.emit(SequenceEvent::Finished { choice, reason: FinishReason::Stop }),
                Drawn::Nothing => return fail_without_logits(origin),
            }
        }
        origin.emit(SequenceEvent::Prefilled);
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
        let Some(sequence) = plan.chunks.get(index).and_then(|chunk| self.scheduler.take(chunk.key)) else {
            self.stop(&Failure::new(ErrorCode::Internal, "the engine stopped: a step failed"));
            return Err(EngineError::Backend(error));
        };
        tracing::warn!(request = %sequence.origin.request, %error, "sequence failed");
        // What it computed or adopted is in doubt: nobody else shall find it.
        self.pool.forget(&sequence.pages);
        sequence.origin.fail(Failure::new(code, format!("the request's kv is not usable: {error}")));
        Ok(())
    }

    fn stop(&mut self, failure: &Failure) {
        for sequence in self.shared.inbox.close() {
            sequence.origin.fail(failure.clone());
        }
        self.scheduler.fail_all(failure);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(&Failure::new(ErrorCode::Unavailable, "the engine stopped"));
    }
}

/// The layers of the group that ends with `layer`, if one does.
fn group_ending_with(layer: u32, layers: u32, groups: u32) -> Option<Range<u32>> {
    let bound = |group: u32| (u64::from(group) * u64::from(layers) / u64::from(groups)) as u32;
    let group = (1..=groups).find(|group| bound(*group) == layer + 1)?;
    Some(bound(group - 1)..layer + 1)
}

fn fail_without_logits(origin: &Origin) {
    origin.fail(Failure::new(ErrorCode::Internal, "the model returned no usable logits"));
}

// === impl Rows ===

impl Rows {
    fn iter(&self) -> Box<dyn Iterator<Item = Row<'_>> + '_> {
        match self {
            Self::Logits(logits) => Box::new(logits.rows().map(Row::Logits)),
            Self::Likeliest(tokens) => Box::new(tokens.iter().copied().map(Row::Likeliest)),
        }
    }
}

// === impl Rules ===

impl Rules {
    /// Whether the next token is the model's likeliest, whatever came before, and nothing else is asked of it.
    fn is_plain(&self, sequence: &Sequence) -> bool {
        let Origin { sampling, stop, logprobs, .. } = &*sequence.origin;
        sampling.temperature <= 0.0
            && sampling.logit_bias.is_empty()
            && sampling.repetition_penalty == 1.0
            && sampling.presence_penalty == 0.0
            && sampling.frequency_penalty == 0.0
            && !logprobs
            && sequence.output_tokens() >= stop.min_tokens as usize
    }

    /// Draws the token after all known ones for one choice.
    fn draw(&self, sequence: &Sequence, choice: u32, row: Option<Row<'_>>) -> Drawn {
        let Some(row) = row else { return Drawn::Nothing };
        let origin = &sequence.origin;
        let position = sequence.output_tokens();
        let eos = if origin.stop.ignore_eos { &[] } else { self.eos_tokens.as_slice() };
        let stops: Vec<u32> = eos.iter().chain(&origin.stop.token_ids).copied().collect();
        let banned = if position < origin.stop.min_tokens as usize { stops.as_slice() } else { &[] };
        let (tokens, prompt_tokens) = (sequence.tokens.as_slice(), origin.prompt_tokens);
        let draw = sampler::Draw { sampling: &origin.sampling, choice, tokens, prompt_tokens, banned };
        let drawn = match row {
            Row::Logits(row) => sampler::draw(row, &draw),
            Row::Likeliest(token) => token,
        };
        let Some(id) = drawn else { return Drawn::Nothing };
        if stops.contains(&id) {
            return Drawn::Stop;
        }
        let (logprob, top) = match row {
            Row::Logits(row) if origin.logprobs => {
                let (logprob, top) = sampler::logprobs(row, id, origin.top_logprobs as usize);
                (Some(logprob), top)
            }
            _ => (None, Vec::new()),
        };
        let is_last = tokens.len() + 1 >= origin.end_tokens;
        let token = Token { choice, position: position as u32, id, logprob, top };
        Drawn::Token { token, end: is_last.then_some(FinishReason::Length) }
    }
}

/// Time after which a stalled engine looks again.
pub(crate) const STALL: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
