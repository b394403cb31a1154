//! Input and output of one step, plain data.

use std::{ops::Range, sync::Arc};

pub use baton_kernels::Draw;
use baton_protocol::{KvShape, PromptToken, Sampling};

use crate::{backend::BackendError, kv::PageId};

/// What one step computes.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// In the order in which logits come back.
    pub sequences: Vec<BatchSequence<'a>>,
    /// How the backend draws for each sequence that wants logits, or that its row is wanted
    /// instead. Empty: the likeliest of each.
    pub draws: Vec<Option<Draw>>,
    /// What the backend does to each of these rows of logits before it draws. Empty: nothing.
    pub shapes: Vec<Option<Shape<'a>>>,
    /// What is read of each sequence's rows besides what it draws from. Empty: nothing.
    pub reads: Vec<Option<Read>>,
}

/// Rows of a sequence that something is read of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Positions among the new tokens, at least one.
    pub rows: Range<usize>,
    /// What of them.
    pub what: What,
}

/// What is read of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// How likely the tokens behind them are, which are known, each with the likeliest so many.
    Tokens(u32),
    /// Their sum behind the last norm.
    Sum,
}

/// What was read of a sequence's rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// See [`What::Tokens`].
    Tokens(Vec<PromptToken>),
    /// See [`What::Sum`]: `[hidden]`. In f64, so that it hardly matters how a prompt is cut.
    Sum(Vec<f64>),
}

/// Rows of which logits are there at a time while they are read.
pub(crate) const READ_ROWS: usize = 64;

/// What is done to a row of logits before a token is drawn from it.
#[derive(Clone, Debug)]
pub struct Shape<'a> {
    /// Whose tokens: another number for every sequence of an engine. Tokens that a
    /// sequence has are never changed.
    pub sequence: (u64, u32),
    /// Biases, and penalties of the sequence's tokens.
    pub sampling: &'a Sampling,
    /// How many of these are the prompt.
    pub prompt_tokens: usize,
    /// Tokens that may be drawn, if not all: bit `token % 32` of word `token / 32`.
    pub mask: Option<Arc<[u32]>>,
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

/// In place of a token: what the step before draws for its `row`-th sequence
/// that wants a token. For steps that are enqueued before that one has ended.
#[must_use]
pub const fn pending(row: usize) -> u32 {
    u32::MAX - row as u32
}

/// The row that a token is [`pending`] on, if the step before has so many and it is.
pub(crate) fn pending_row(token: u32, rows: usize) -> Option<usize> {
    Some((u32::MAX - token) as usize).filter(|row| *row < rows)
}

/// Rows of logits, one for each sequence that wanted them, in batch order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// `[row][vocab]`
    pub values: Vec<f32>,
    /// Length of a row.
    pub vocab_tokens: usize,
    /// What was read, each with the place of its sequence in the batch.
    pub read: Vec<(usize, Reading)>,
}

/// What a step gives for each sequence that wants logits, in batch order.
#[derive(Debug, Default)]
pub struct Rows {
    /// A token that was drawn, or which of `logits` to draw from.
    pub sources: Vec<Source>,
    /// Rows that are wanted.
    pub logits: Logits,
}

/// See [`Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// None: no logit was usable.
    Token(Option<u32>),
    /// Index among the rows of logits.
    Row(usize),
}

/// What one sequence draws from.
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    /// The backend has drawn already.
    Token(Option<u32>),
    /// Its logits.
    Logits(&'a [f32]),
}

impl Rows {
    /// One for each sequence that wants something.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let Logits { values, vocab_tokens, .. } = &self.logits;
        self.sources.iter().map(move |source| match *source {
            Source::Token(token) => Row::Token(token),
            Source::Row(row) => Row::Logits(&values[row * vocab_tokens..][..*vocab_tokens]),
        })
    }
}

impl<'a> Batch<'a> {
    /// A batch of which the likeliest tokens are wanted, or logits.
    pub fn new(sequences: Vec<BatchSequence<'a>>) -> Self {
        Self { sequences, ..Self::default() }
    }

    /// What is done to the logits of the `index`-th sequence that wants some.
    pub fn shape(&self, index: usize) -> Option<&Shape<'a>> {
        self.shapes.get(index)?.as_ref()
    }

    /// The sequences that have rows read, each with its place.
    pub fn reading(&self) -> impl Iterator<Item = (usize, &BatchSequence<'a>, &Read)> {
        let sequences = self.sequences.iter().enumerate();
        sequences.filter_map(move |(index, sequence)| Some((index, sequence, self.read(index)?)))
    }

    /// What is read of the `index`-th sequence.
    pub fn read(&self, index: usize) -> Option<&Read> {
        self.reads.get(index)?.as_ref()
    }

    /// The sequences that want logits, in order.
    pub fn wanted(&self) -> impl Iterator<Item = &BatchSequence<'a>> {
        self.sequences.iter().filter(|sequence| sequence.wants_logits)
    }

    /// How the backend draws for the `index`-th sequence that wants logits, if it does.
    pub fn draw(&self, index: usize) -> Option<Draw> {
        self.draws.get(index).copied().unwrap_or(Some(Draw::LIKELIEST))
    }
}

impl Batch<'_> {
    /// Refuses what cannot be computed in `pages` pages of `shape`, before anything is.
    ///
    /// # Errors
    /// [`BackendError`] names the sequence.
    pub(crate) fn check(&self, shape: &KvShape, pages: usize, vocab: usize) -> Result<(), BackendError> {
        self.check_ahead(shape, pages, vocab, 0)
    }

    /// As [`check`](Self::check), when tokens of `pending_rows` rows of a step before may be [`pending`].
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn check_ahead(
        &self,
        shape: &KvShape,
        pages: usize,
        vocab: usize,
        pending_rows: usize,
    ) -> Result<(), BackendError> {
        for (index, sequence) in self.sequences.iter().enumerate() {
            let &BatchSequence { tokens, start, end, pages: own, .. } = sequence;
            let is_there = |page: &PageId| (page.0 as usize) < pages;
            if start >= end
                || end > tokens.len()
                || own.len() < shape.pages_for(end)
                || !own.iter().all(is_there)
            {
                return Err(BackendError::Device(format!(
                    "sequence {index}: cannot compute {start}..{end} of {} tokens in {} of {pages} pages",
                    tokens.len(),
                    own.len()
                )));
            }
            let is_outside = |read: &&Read| {
                let behind = usize::from(matches!(read.what, What::Tokens(_)));
                let Range { start: first, end: last } = read.rows;
                first < start || last > end || first >= last || last + behind > tokens.len()
            };
            if let Some(Read { rows, .. }) = self.read(index).filter(is_outside) {
                let message = format!("sequence {index}: cannot read {rows:?} in {start}..{end}");
                return Err(BackendError::Device(message));
            }
            let is_known =
                |token: u32| (token as usize) < vocab || pending_row(token, pending_rows).is_some();
            if let Some(&token) = tokens[start..end].iter().find(|token| !is_known(**token)) {
                return Err(BackendError::Token { sequence: index, token, vocab });
            }
        }
        Ok(())
    }

    /// New tokens in all.
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.end - sequence.start).sum()
    }
}

impl Read {
    /// The tokens behind its rows, among all of its sequence.
    pub(crate) fn behind<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        &tokens[self.rows.start + 1..=self.rows.end]
    }
}

/// The sum of rows of `width` values, in their order.
pub(crate) fn sum_rows(rows: impl Iterator<Item = f32>, width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for (index, value) in rows.enumerate() {
        sum[index % width] += f64::from(value);
    }
    sum
}

impl Logits {
    /// The rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab_tokens.max(1))
    }
}
