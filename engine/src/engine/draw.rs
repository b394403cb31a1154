//! What a step gave, and the tokens that are drawn from it.

use std::{cell::RefCell, sync::Arc};

use baton_kernels::shape::mask_words;
use baton_protocol::{ErrorCode, Failure, FinishReason, Token};

use crate::{
    EngineMetrics, SequenceEvent,
    backend::Backend,
    batch::{Draw, Row, Shape},
    sampler,
    scheduler::Chunk,
    sequence::{Origin, Sequence},
};

/// How tokens are drawn, besides what the request says.
pub(super) struct Rules {
    pub eos_tokens: Vec<u32>,
    pub vocab_tokens: usize,
    pub metrics: EngineMetrics,
    pub told: Told,
}

/// What came of a step's draws, told when all are done: whoever listens wakes once, and not in the
/// middle of the step for each.
#[derive(Default)]
pub(super) struct Told(RefCell<Vec<(Arc<Origin>, SequenceEvent)>>);

/// Where a token is drawn: after `tokens`, for one choice.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    origin: &'a Arc<Origin>,
    tokens: &'a [u32],
    choice: u32,
    /// What its grammar allows.
    grammar: Option<&'a Arc<[u32]>>,
}

/// What came of a draw. The receiver is told.
pub(super) enum Drawn {
    /// The choice goes on with this token.
    Token(u32),
    /// The choice ended.
    End,
    /// The model returned nothing to draw from: the request failed.
    Nothing,
}

// === impl Rules ===

impl Rules {
    /// How the backend draws for those of a plan that want it, if it can, and what it does to
    /// their logits before. What decides is the request alone: its tokens do not depend on who
    /// else is in the step.
    pub fn on_backend<'a>(
        &self,
        backend: &dyn Backend,
        planned: impl Iterator<Item = (&'a Chunk, &'a Sequence)>,
    ) -> (Vec<Option<Draw>>, Vec<Option<Shape<'a>>>) {
        let draw = |(_, sequence): (&Chunk, &'a Sequence)| {
            let origin = &*sequence.origin;
            let choice = sequence.choices.front().map_or(0, |choice| choice.choice);
            let draw = sampler::plain(&origin.sampling, choice, sequence.output_tokens() as u64);
            let shape = self.shape(sequence);
            // Several choices draw differently from one row, unless it is the likeliest.
            let is_one = sequence.choices.len() <= 1 || draw == Draw::LIKELIEST;
            match is_one && !origin.logprobs && backend.draws(&draw, shape.as_ref()) {
                true => (Some(draw), shape),
                false => (None, None),
            }
        };
        planned.filter(|(chunk, _)| chunk.wants_logits).map(draw).unzip()
    }

    /// What is done to the logits that the sequence's next token is drawn from.
    fn shape<'a>(&self, sequence: &'a Sequence) -> Option<Shape<'a>> {
        let origin = &*sequence.origin;
        let mask = self.mask(Place::of(sequence, &sequence.tokens, 0));
        let shape = Shape {
            sequence: sequence.key,
            sampling: &origin.sampling,
            prompt_tokens: origin.prompt_tokens,
            mask,
        };
        (shape.mask.is_some() || sampler::is_shaping(shape.sampling)).then_some(shape)
    }

    /// Tokens that may be drawn, if not all: what the grammar allows, and no end before
    /// `min_tokens`, unless the grammar allows nothing else.
    fn mask(&self, place: Place<'_>) -> Option<Arc<[u32]>> {
        let Place { origin, grammar, .. } = place;
        if place.answer_tokens() >= origin.stop.min_tokens as usize || self.stops(origin).next().is_none() {
            return grammar.cloned();
        }
        let words = mask_words(self.vocab_tokens);
        let mut mask = grammar.map_or_else(|| vec![u32::MAX; words], |mask| mask.to_vec());
        for stop in self.stops(origin) {
            if let Some(word) = mask.get_mut(stop as usize / 32) {
                *word &= !(1 << (stop % 32));
            }
        }
        let must_end = mask.iter().all(|word| *word == 0);
        if must_end { grammar.cloned() } else { Some(mask.into()) }
    }

    /// Draws the next token. The receiver is told what came of it with the others of the step.
    pub fn draw(&self, place: Place<'_>, row: Option<Row<'_>>) -> Drawn {
        let Place { origin, tokens, choice, .. } = place;
        let Some((row, id)) = row.and_then(|row| Some((row, self.choose(place, row)?))) else {
            origin.fail(Failure::new(ErrorCode::Internal, "the model returned no usable logits"));
            return Drawn::Nothing;
        };
        if self.stops(origin).any(|stop| stop == id) {
            self.told.push(origin, SequenceEvent::Finished { choice, reason: FinishReason::Stop });
            return Drawn::End;
        }
        let (logprob, top) = match row {
            Row::Logits(row) if origin.logprobs => {
                let (logprob, top) = sampler::logprobs(row, id, origin.top_logprobs as usize);
                (Some(logprob), top)
            }
            _ => (None, Vec::new()),
        };
        let position = place.answer_tokens() as u32;
        self.metrics.generation_tokens.inc();
        self.told.push(origin, SequenceEvent::Token(Token { choice, position, id, logprob, top }));
        if tokens.len() + 1 < origin.end_tokens {
            return Drawn::Token(id);
        }
        self.told.push(origin, SequenceEvent::Finished { choice, reason: FinishReason::Length });
        Drawn::End
    }

    fn choose(&self, place: Place<'_>, row: Row<'_>) -> Option<u32> {
        let row = match row {
            Row::Logits(row) => row,
            Row::Token(token) => return token,
        };
        let Place { origin, tokens, choice, .. } = place;
        let prompt_tokens = origin.prompt_tokens;
        let mask = self.mask(place);
        let mask = mask.as_deref();
        let draw = sampler::Draw { sampling: &origin.sampling, choice, tokens, prompt_tokens, mask };
        sampler::draw(row, &draw)
    }

    /// Tokens that end an answer and are not emitted.
    fn stops<'a>(&'a self, origin: &'a Origin) -> impl Iterator<Item = u32> + 'a {
        let eos = if origin.stop.ignore_eos { &[] } else { self.eos_tokens.as_slice() };
        eos.iter().chain(&origin.stop.token_ids).copied()
    }
}

// === impl Told ===

impl Told {
    pub fn push(&self, origin: &Arc<Origin>, event: SequenceEvent) {
        self.0.borrow_mut().push((Arc::clone(origin), event));
    }

    /// Tells everybody whose request has not failed meanwhile.
    pub fn tell(&self) {
        for (origin, event) in self.0.borrow_mut().drain(..) {
            if !origin.is_over() {
                origin.emit(event);
            }
        }
    }
}

// === impl Place ===

impl<'a> Place<'a> {
    /// After these tokens of a sequence.
    pub fn of(sequence: &'a Sequence, tokens: &'a [u32], choice: u32) -> Self {
        Self { origin: &sequence.origin, tokens, choice, grammar: sequence.mask() }
    }

    fn answer_tokens(&self) -> usize {
        self.tokens.len() - self.origin.prompt_tokens
    }
}
