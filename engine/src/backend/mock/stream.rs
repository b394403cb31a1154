//! Steps of the mock that wait for their turn, as on a card's stream.

use std::{collections::VecDeque, sync::Arc};

use baton_protocol::Sampling;

use crate::{
    batch::{Batch, BatchSequence, Shape, pending_row},
    kv::PageId,
};

/// Steps that may be under way.
const MAX_AHEAD: usize = 2;

/// Steps under way, oldest first. None has read or written a page yet: a page
/// that is given to someone else too early is found out.
#[derive(Default)]
pub(super) struct Stream {
    steps: VecDeque<Step>,
    /// What the step that ran last drew.
    drawn: Vec<Option<u32>>,
}

/// A batch, kept until it runs.
pub(super) struct Step {
    parts: Vec<Part>,
    shapes: Vec<Option<OwnShape>>,
}

/// A [`Shape`] that borrows nothing.
struct OwnShape {
    sequence: (u64, u32),
    sampling: Sampling,
    prompt_tokens: usize,
    mask: Option<Arc<[u32]>>,
}

struct Part {
    tokens: Vec<u32>,
    start: usize,
    pages: Vec<PageId>,
    wants_logits: bool,
}

// === impl Stream ===

impl Stream {
    pub fn is_full(&self) -> bool {
        self.steps.len() == MAX_AHEAD
    }

    /// Rows that tokens of the next step may be pending on.
    pub fn rows(&self) -> usize {
        self.steps.back().map_or(0, |step| step.parts.iter().filter(|part| part.wants_logits).count())
    }

    pub fn push(&mut self, batch: &Batch<'_>) {
        let part = |sequence: &BatchSequence<'_>| Part {
            tokens: sequence.tokens[..sequence.end].to_vec(),
            start: sequence.start,
            pages: sequence.pages.to_vec(),
            wants_logits: sequence.wants_logits,
        };
        let own = |shape: &Option<Shape<'_>>| shape.as_ref().map(OwnShape::new);
        let shapes = batch.shapes.iter().map(own).collect();
        self.steps.push_back(Step { parts: batch.sequences.iter().map(part).collect(), shapes });
    }

    /// The oldest step, once its pending tokens are drawn.
    pub fn pop(&mut self) -> Option<Step> {
        let mut step = self.steps.pop_front()?;
        for token in step.parts.iter_mut().flat_map(|part| &mut part.tokens) {
            if let Some(row) = pending_row(*token, self.drawn.len()) {
                // Nothing was drawn: its sequence has failed.
                *token = self.drawn[row].unwrap_or(0);
            }
        }
        Some(step)
    }

    /// Notes what the step drew that ran last.
    pub fn drew(&mut self, drawn: &[Option<u32>]) {
        self.drawn.clear();
        self.drawn.extend_from_slice(drawn);
    }
}

// === impl Step ===

impl Step {
    pub fn batch(&self) -> Batch<'_> {
        let mut batch = Batch::new(self.parts.iter().map(Part::sequence).collect());
        batch.shapes = self.shapes.iter().map(|shape| shape.as_ref().map(OwnShape::shape)).collect();
        batch
    }
}

// === impl OwnShape ===

impl OwnShape {
    fn new(shape: &Shape<'_>) -> Self {
        let Shape { sequence, sampling, prompt_tokens, mask } = shape.clone();
        Self { sequence, sampling: sampling.clone(), prompt_tokens, mask }
    }

    fn shape(&self) -> Shape<'_> {
        let &Self { sequence, ref sampling, prompt_tokens, ref mask } = self;
        Shape { sequence, sampling, prompt_tokens, mask: mask.clone() }
    }
}

// === impl Part ===

impl Part {
    fn sequence(&self) -> BatchSequence<'_> {
        let Self { tokens, start, pages, wants_logits } = self;
        let (start, end, wants_logits) = (*start, tokens.len(), *wants_logits);
        BatchSequence { tokens, start, end, pages, wants_logits }
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::Sampling;

    use crate::{
        backend::{
            Backend, BackendError,
            mock::{MockBackend, MockConfig, expected},
        },
        batch::{Batch, BatchSequence, pending},
        kv::PageId,
    };

    fn enqueue(mock: &mut MockBackend, tokens: &[u32], start: usize) -> Result<(), BackendError> {
        let pages = [PageId(1), PageId(0)];
        let sequence = BatchSequence { tokens, start, end: tokens.len(), pages: &pages, wants_logits: true };
        mock.enqueue(&Batch::new(vec![sequence]))
    }

    #[test]
    fn steps_wait_for_their_turn_and_know_what_the_one_before_drew() {
        let mut mock = MockBackend::new(MockConfig { runs_ahead: true, ..MockConfig::default() }, 4);
        mock.allocate(2).unwrap();
        let prompt = [5, 6, 7];
        let answer = expected(&prompt, &Sampling { temperature: 0.0, ..Sampling::default() }, 0, 3);
        assert!(matches!(enqueue(&mut mock, &[5, pending(0)], 0), Err(BackendError::Token { .. })));
        enqueue(&mut mock, &prompt, 0).unwrap();
        enqueue(&mut mock, &[5, 6, 7, pending(0)], 3).unwrap();
        assert!(matches!(enqueue(&mut mock, &prompt, 0), Err(BackendError::Device(_))), "two are under way");
        assert_eq!(mock.collect().unwrap(), [Some(answer[0])]);
        enqueue(&mut mock, &[5, 6, 7, answer[0], pending(0)], 4).unwrap();
        assert_eq!(mock.collect().unwrap(), [Some(answer[1])]);
        assert_eq!(mock.collect().unwrap(), [Some(answer[2])]);
        assert!(matches!(mock.collect(), Err(BackendError::Device(_))));
    }

    #[test]
    fn a_step_that_fails_takes_the_one_after_it_along() {
        let mut mock = MockBackend::new(MockConfig { runs_ahead: true, ..MockConfig::default() }, 4);
        mock.allocate(2).unwrap();
        enqueue(&mut mock, &[5, 6, 7], 2).unwrap();
        enqueue(&mut mock, &[5, 6, 7, pending(0)], 3).unwrap();
        assert!(matches!(mock.collect(), Err(BackendError::ForeignKv { position: 0, .. })));
        assert!(matches!(mock.collect(), Err(BackendError::Device(_))));
    }
}
