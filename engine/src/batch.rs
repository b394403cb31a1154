//! Input and output of one step, plain data.

use crate::kv::PageId;

/// What one step computes.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// In the order in which logits come back.
    pub sequences: Vec<BatchSequence<'a>>,
}

/// The new tokens of one sequence.
#[derive(Debug)]
pub struct BatchSequence<'a> {
    /// All tokens known so far; KV of `tokens[..start]` is in `pages`.
    pub tokens: &'a [u32],
    /// First token to compute.
    pub start: usize,
    /// One past the last token to compute.
    pub end: usize,
    /// Pages of the sequence, enough for `end` tokens; page `i` holds tokens
    /// `i * page_tokens ..`.
    pub pages: &'a [PageId],
    /// Whether logits after token `end - 1` are wanted.
    pub wants_logits: bool,
}

/// Rows of logits, one for each sequence that wanted them, in batch order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// `[row][vocab]`
    pub values: Vec<f32>,
    /// Length of a row.
    pub vocab_tokens: usize,
}

impl Batch<'_> {
    /// New tokens in all.
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.end - sequence.start).sum()
    }
}

impl Logits {
    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab_tokens.max(1))
    }
}
