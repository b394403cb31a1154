//! What computes: trait [`Backend`], plain data in, logits out. Sync.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod mock;

use std::sync::Arc;

use baton_protocol::KvShape;

use crate::{
    batch::{Batch, BatchSequence, Draw, Logits, Rows, Shape, Source},
    kv::KvStore,
    sampler,
};

/// One model on one device. Owned by one engine, called from its thread.
pub trait Backend: Send {
    /// Its name in config: `cpu`, `cuda`, `mock`.
    fn name(&self) -> &'static str;

    /// Shape of the KV rows it reads and writes (page size included).
    fn kv_shape(&self) -> &KvShape;

    /// Size of the vocabulary: the length of a row of logits.
    fn vocab_tokens(&self) -> usize;

    /// Makes the memory of its pages, zeroed, in place of what it had.
    ///
    /// # Errors
    /// [`BackendError::Device`] when the device has not so much.
    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError>;

    /// Pages that fit into what its device has left; none when its pages are in the machine's memory.
    fn pages_left(&self) -> Option<usize> {
        None
    }

    /// New tokens of a step that are enough to keep its device busy.
    fn batch_tokens(&self) -> usize {
        512
    }

    /// Runs the new tokens of every sequence through all layers: writes their
    /// KV rows into their pages and returns one row of logits for each
    /// sequence that asks for it, in batch order.
    ///
    /// `layer_done(l)` is called after layer `l`'s KV rows of the whole batch
    /// are in memory, in order of `l`, so that a handoff can send them while
    /// later layers compute. The same input gives the same bits whatever else
    /// is in the batch.
    ///
    /// # Errors
    /// [`BackendError`] names the sequence at fault, if it is one sequence's;
    /// such an error comes before the first `layer_done`, because the others'
    /// rows are computed and reported again in the next step.
    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError>;

    /// Whether it draws tokens like this itself, from rows that it shapes before. All draw
    /// the likeliest.
    fn draws(&self, draw: &Draw, shape: Option<&Shape<'_>>) -> bool {
        let _ = shape;
        draw.temperature <= 0.0
    }

    /// As [`forward`](Self::forward), with a token in place of each row of logits for
    /// which the batch says how to draw.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn draw(&mut self, batch: &Batch<'_>, layer_done: &mut dyn FnMut(usize)) -> Result<Rows, BackendError> {
        let logits = self.forward(batch, layer_done)?;
        let source = |(index, (row, sequence))| match batch.draw(index) {
            Some(_) => Source::Token(likeliest(row, sequence, batch.shape(index))),
            None => Source::Row(index),
        };
        let rows = logits.rows().zip(batch.wanted());
        Ok(Rows { sources: rows.enumerate().map(source).collect(), logits })
    }

    /// Whether it takes steps with [`enqueue`](Self::enqueue): one may be under way while the next is made.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Enqueues a step of which only the drawn tokens are wanted. A token
    /// that is [`pending`](crate::batch::pending) is the one that the step
    /// enqueued before draws. Steps run in order; at most two are under way.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and nothing is enqueued; [`BackendError::Device`]
    /// when two steps are under way, or it does not run ahead.
    fn enqueue(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let _ = batch;
        Err(BackendError::Device("it does not run ahead".to_owned()))
    }

    /// The drawn tokens of the oldest step under way, in its batch's order.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and no step is under way any more;
    /// [`BackendError::Device`] when none was.
    fn collect(&mut self) -> Result<Vec<Option<u32>>, BackendError> {
        Err(BackendError::Device("no step is under way".to_owned()))
    }
}

/// The likeliest token of a row, once it is shaped.
fn likeliest(row: &[f32], sequence: &BatchSequence<'_>, shape: Option<&Shape<'_>>) -> Option<u32> {
    let Some(shape) = shape else { return sampler::greatest(row) };
    let &Shape { sampling, prompt_tokens, ref mask, .. } = shape;
    let tokens = &sequence.tokens[..sequence.end];
    let draw = sampler::Draw { sampling, choice: 0, tokens, prompt_tokens, mask: mask.as_deref() };
    sampler::likeliest_shaped(row, &draw)
}

/// A step that could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A page held something else than this sequence's KV: the sequence must fail, others go on.
    #[error("sequence {sequence}: kv row of position {position} is not this sequence's")]
    ForeignKv {
        /// Index in the batch.
        sequence: usize,
        /// Token position of the row.
        position: usize,
    },
    /// A token outside of the vocabulary.
    #[error("sequence {sequence}: token {token} is outside of the vocabulary of {vocab}")]
    Token {
        /// Index in the batch.
        sequence: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The device failed; the engine stops.
    #[error("device failed: {0}")]
    Device(String),
}
