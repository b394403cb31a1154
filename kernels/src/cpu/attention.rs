//! Paged causal attention with grouped queries.
//!
//! Keys are visited in ranges of 256 at absolute positions 0, 256, …, each with a
//! softmax of its own: all scores of some rows, their weights, all products with
//! values. Ranges are then merged in order. What a row does not see (it sees the
//! keys up to its position, or only the last `window` of them) adds zeros to its
//! sums, which have one fixed order, so its result is the same bits in a prompt of
//! any chunking and as a single new token. Panels of 32 keys that no row of some
//! sees cost these nothing.
//!
//! - `block`: some heads and query positions of one sequence: what a thread works on
//! - `state`: the softmax of a block's rows
//! - `run`: all keys of a block, or one range of them
//! - `buffers`: the memory that a thread works in

#![expect(unsafe_code, reason = "blocks write different heads of the same rows")]

mod block;
mod buffers;
mod run;
mod state;

use super::{
    amx::{Amx, BLOCK},
    disjoint::Disjoint,
    element::Element,
    pool::ComputePool,
    tile::PANEL,
};
use block::Block;
use buffers::with_scratch;
use run::{Merge, Run};

/// Key positions that have a softmax of their own.
const RANGE_KEYS: usize = 8 * PANEL;

/// A block with more than this part of a thread's share of all work is done range by range.
const PARTS_PER_THREAD: usize = 4;

/// What all sequences of a call share.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head: even.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// A token sees itself and the `window - 1` tokens before it; everything before it if none.
    pub window: Option<usize>,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// The new tokens of one sequence.
#[derive(Debug)]
pub struct AttentionSequence<'a, E> {
    /// Their first row in `q` and `out`.
    pub first_row: usize,
    /// How many there are.
    pub rows: usize,
    /// Position of the first.
    pub start: usize,
    /// Number of pages that are left out at the front: nothing in them is seen.
    pub first_page: usize,
    /// Rows `[token][K|V][kv_head][head_dim]` up to position `start + rows`, by page.
    pub pages: Vec<&'a [E]>,
}

/// `out[row] = softmax(q[row] * K * scale) * V` by head, over what the row sees
/// of its sequence. `q` and `out` are `[row][head][head_dim]`.
///
/// # Panics
/// When a shape does not fit.
pub fn attention<E: Element>(
    pool: &ComputePool,
    shape: AttentionShape,
    sequences: &[AttentionSequence<'_, E>],
    q: &[E],
    out: &mut [E],
) {
    shape.check(sequences, q, out);
    let out = Disjoint::new(out);
    let no_key = vec![E::default(); shape.kv_row()];
    let amx = pool.isa().amx().filter(|_| E::PARTS == 1 && shape.head_dim.is_multiple_of(BLOCK));
    let call = Call { shape, no_key: &no_key, q, out: &out, amx };
    let blocks: Vec<Block<'_, E>> =
        sequences.iter().flat_map(|sequence| Block::of(&call, sequence)).collect();
    let work: usize = blocks.iter().map(Block::work).sum();
    let share = work / (PARTS_PER_THREAD * pool.threads());
    let (split, whole): (Vec<_>, Vec<_>) =
        blocks.into_iter().partition(|block| block.work() > share && block.ranges().len() > 1);
    let mut states: Vec<Vec<f32>> =
        split.iter().map(|block| vec![0.0; block.ranges().len() * block.state_floats()]).collect();
    let mut tasks = Vec::new();
    for (block, states) in split.iter().zip(&mut states) {
        let states = states.chunks_exact_mut(block.state_floats());
        tasks.extend(block.ranges().zip(states).map(|(range, state)| (block, range..range + 1, Some(state))));
    }
    tasks.extend(whole.iter().map(|block| (block, block.ranges(), None)));
    let isa = pool.isa();
    pool.for_each(tasks, |(block, ranges, state)| {
        with_scratch(|scratch| isa.run(Run { block, ranges, buffers: block.buffers(scratch), state }));
    });
    let merges: Vec<_> = split.iter().zip(&mut states).collect();
    pool.for_each(merges, |(block, states)| isa.run(Merge { block, states }));
}

/// What is the same for all blocks of a call.
struct Call<'a, E> {
    shape: AttentionShape,
    /// Zeros, in place of keys that no row sees.
    no_key: &'a [E],
    q: &'a [E],
    out: &'a Disjoint<'a, E>,
    /// If tile registers make its products.
    amx: Option<Amx>,
}

// === impl AttentionShape ===

impl AttentionShape {
    /// First position that a token at `position` sees.
    #[inline]
    pub fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    #[inline]
    fn q_row(&self) -> usize {
        self.heads * self.head_dim
    }

    #[inline]
    fn kv_row(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Query heads of a key/value head.
    #[inline]
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn check<E>(&self, sequences: &[AttentionSequence<'_, E>], q: &[E], out: &[E]) {
        assert!(self.heads.is_multiple_of(self.kv_heads), "heads are not whole groups");
        assert!(self.head_dim.is_multiple_of(2), "head of odd length");
        assert!(self.window != Some(0), "window without the token itself");
        assert_eq!(q.len(), out.len(), "output of another shape");
        let mut next_row = 0;
        for sequence in sequences {
            assert!(sequence.first_row >= next_row, "sequences overlap");
            next_row = sequence.first_row + sequence.rows;
            let pages = (sequence.start + sequence.rows).div_ceil(self.page_tokens);
            let page = self.page_tokens * self.kv_row();
            assert!(sequence.first_page + sequence.pages.len() >= pages, "sequence lacks pages");
            let missing = sequence.first_page * self.page_tokens;
            assert!(missing <= self.first_seen(sequence.start), "sequence lacks pages at its front");
            assert!(sequence.pages.iter().all(|values| values.len() >= page), "page too short");
        }
        assert!(next_row * self.q_row() <= q.len(), "queries lack rows");
    }
}

#[cfg(test)]
mod tests;
