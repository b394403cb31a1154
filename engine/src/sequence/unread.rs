//! What is still to be read of a prompt while it is computed.

use std::ops::Range;

use baton_protocol::PromptLogprobs;

use super::spec::SequenceSpec;
use crate::batch::{Read, What};

/// Rows before `next_row` were read, or nobody wants them.
#[derive(Debug)]
pub(super) enum Unread {
    /// How likely tokens are.
    Tokens(PromptLogprobs),
    /// Rows behind the last norm, of which those before `next` come to `sum`.
    Rows { next: usize, sum: Vec<f64> },
}

// === impl Unread ===

impl Unread {
    pub(super) fn of(spec: &SequenceSpec) -> Option<Self> {
        if let Some(pooling) = spec.goal.pooling() {
            return Some(Self::Rows { next: pooling.first_row(spec.tokens.len()), sum: Vec::new() });
        }
        let told = spec.prompt_logprobs.filter(|asked| (asked.from as usize) < spec.prompt_tokens);
        told.map(Self::Tokens)
    }

    /// The tokens that are left to tell of, if any are.
    pub(super) fn tokens_behind(read: &Read, prompt_tokens: usize) -> Option<Self> {
        let What::Tokens(top) = read.what else { return None };
        let from = read.rows.end + 1;
        (from < prompt_tokens).then_some(Self::Tokens(PromptLogprobs { from: from as u32, top }))
    }

    /// The first row that is to be read.
    pub(super) fn next_row(&self) -> usize {
        match self {
            Self::Tokens(asked) => asked.from as usize - 1,
            Self::Rows { next, .. } => *next,
        }
    }

    /// What is read of a chunk, if anything is.
    pub(super) fn of_chunk(&self, chunk: &Range<usize>, prompt_tokens: usize) -> Option<Read> {
        let (end, what) = match self {
            // Nothing of the prompt is behind its last token.
            Self::Tokens(asked) => (prompt_tokens - 1, What::Tokens(asked.top)),
            Self::Rows { .. } => (prompt_tokens, What::Sum),
        };
        let rows = chunk.start.max(self.next_row())..chunk.end.min(end);
        (!rows.is_empty()).then_some(Read { rows, what })
    }

    /// Adds up rows before `end`.
    pub(super) fn add(&mut self, end: usize, more: &[f64]) {
        let Self::Rows { next, sum } = self else { return };
        *next = end;
        sum.resize(more.len(), 0.0);
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }

    /// The vector in the direction of the sum, which is that of the mean too, of length 1; none if
    /// it has no direction.
    pub(super) fn into_vector(self) -> Option<Vec<f32>> {
        let Self::Rows { sum, .. } = self else { return None };
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        let is_usable = length.is_finite() && length > 0.0;
        is_usable.then(|| sum.iter().map(|value| (value / length) as f32).collect())
    }
}
