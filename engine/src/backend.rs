//! What computes: trait [`Backend`], plain data in, logits out. Sync.

pub mod cpu;
pub mod mock;

use baton_protocol::KvShape;

use crate::{
    batch::{Batch, Logits},
    kv::KvMemory,
};

/// One model on one device. Owned by one engine, called from its thread.
pub trait Backend: Send {
    /// Its name in config: `cpu`, `mock`.
    fn name(&self) -> &'static str;

    /// Shape of the KV rows it reads and writes (page size included).
    fn kv_shape(&self) -> &KvShape;

    /// Size of the vocabulary: the length of a row of logits.
    fn vocab_tokens(&self) -> usize;

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
        memory: &KvMemory,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError>;
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
