//! Paged causal attention with grouped queries.
//!
//! Keys are visited in tiles of 64 at absolute positions 0, 64, …, with a
//! running softmax. A query row takes part exactly in the tiles at or before
//! its position, each in one fixed order of sums, so its result is the same
//! bits in a prompt of any chunking and as a single new token.
//!
//! A task is one key/value head and up to 32 query positions of one sequence;
//! it lays out each tile of keys and values once for all of its rows: the query
//! heads of the group at every position.

#![expect(unsafe_code, reason = "tasks write different heads of the same rows")]

mod buffers;

use std::ops::Range;

use super::{
    disjoint::Disjoint,
    element::Element,
    pool::ComputePool,
    simd::{LANES, Simd, Work},
    tile::{PANEL, Product, Rows, Tile},
};
use buffers::{Buffers, with_scratch};

/// Key positions of a tile.
const TILE_KEYS: usize = 64;

/// Bytes that memory is read by.
const LINE_BYTES: usize = 64;

/// Query positions of a task.
const TASK_POSITIONS: usize = 32;

/// Sizes that all sequences of a call share.
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
    /// Rows `[token][K|V][kv_head][head_dim]` of positions 0 to `start + rows`, by page.
    pub pages: Vec<&'a [E]>,
}

/// `out[row] = softmax(q[row] * K / sqrt(head_dim)) * V` by head, over the
/// row's sequence up to its position. `q` and `out` are `[row][head][head_dim]`.
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
    let mut tasks = Vec::new();
    for sequence in sequences {
        for first in (0..sequence.rows).step_by(TASK_POSITIONS) {
            let rows = first..sequence.rows.min(first + TASK_POSITIONS);
            for kv_head in 0..shape.kv_heads {
                tasks.push(Task {
                    shape,
                    sequence,
                    kv_head,
                    rows: rows.clone(),
                    no_key: &no_key,
                    q,
                    out: &out,
                });
            }
        }
    }
    pool.for_each(tasks, |task| {
        with_scratch(|scratch| pool.isa().run(Run { buffers: task.buffers(scratch), task }));
    });
}

/// One key/value head and some query positions of one sequence.
struct Task<'a, E> {
    shape: AttentionShape,
    sequence: &'a AttentionSequence<'a, E>,
    kv_head: usize,
    /// Of the sequence's new tokens.
    rows: Range<usize>,
    /// Zeros, in place of keys after the last.
    no_key: &'a [E],
    q: &'a [E],
    out: &'a Disjoint<'a, E>,
}

/// A task and what it works in.
struct Run<'a, E> {
    task: Task<'a, E>,
    buffers: Buffers<'a, E>,
}

// === impl AttentionShape ===

impl AttentionShape {
    #[inline]
    fn q_row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_row(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Query heads of a key/value head.
    #[inline]
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of values and output in whole panels.
    #[inline]
    fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    fn check<E>(&self, sequences: &[AttentionSequence<'_, E>], q: &[E], out: &[E]) {
        assert!(self.heads.is_multiple_of(self.kv_heads), "heads are not whole groups");
        assert!(self.head_dim.is_multiple_of(2), "head of odd length");
        assert_eq!(q.len(), out.len(), "output of another shape");
        let mut next_row = 0;
        for sequence in sequences {
            assert!(sequence.first_row >= next_row, "sequences overlap");
            next_row = sequence.first_row + sequence.rows;
            let pages = (sequence.start + sequence.rows).div_ceil(self.page_tokens);
            let page = self.page_tokens * self.kv_row();
            assert!(sequence.pages.len() >= pages, "sequence lacks pages");
            assert!(sequence.pages.iter().all(|values| values.len() >= page), "page too short");
        }
        assert!(next_row * self.q_row() <= q.len(), "queries lack rows");
    }
}

// === impl Task ===

impl<'a, E: Element> Task<'a, E> {
    /// Query rows: the group's heads at each position.
    fn query_rows(&self) -> usize {
        self.rows.len() * self.shape.group()
    }

    /// Element of `q` and `out` where the group's heads at new token `row` begin.
    fn heads_at(&self, row: usize) -> usize {
        (self.sequence.first_row + row) * self.shape.q_row()
            + self.kv_head * self.shape.group() * self.shape.head_dim
    }

    /// Key and value rows of the tile at `base`, zeros from position `end` on.
    fn tile(&self, base: usize, end: usize) -> [&'a [E]; TILE_KEYS] {
        let (tokens, len) = (self.shape.page_tokens, self.shape.kv_row());
        let (mut page, mut token) = (base / tokens, base % tokens);
        let mut rows = [self.no_key; TILE_KEYS];
        for row in &mut rows[..TILE_KEYS.min(end.saturating_sub(base))] {
            *row = &self.sequence.pages[page][token * len..][..len];
            token += 1;
            if token == tokens {
                (page, token) = (page + 1, 0);
            }
        }
        rows
    }

    /// Rows of a page lie apart too far for the processor to foresee the next one.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, kv: &[&[E]; TILE_KEYS]) {
        let dim = self.shape.head_dim;
        for row in kv {
            for head in [self.kv_head, self.shape.kv_heads + self.kv_head] {
                for line in row[head * dim..][..dim].chunks(LINE_BYTES / size_of::<E>()) {
                    s.prefetch(line.as_ptr());
                }
            }
        }
    }
}

// === impl Run ===

impl<E: Element> Work for Run<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let first = self.task.sequence.start + self.task.rows.start;
        let end = self.task.sequence.start + self.task.rows.end;
        self.load_queries();
        let mut next = self.task.tile(0, end);
        for base in (0..end).step_by(TILE_KEYS) {
            let kv = next;
            next = self.task.tile(base + TILE_KEYS, end);
            self.task.prefetch(s, &next);
            self.lay_out_keys(s, &kv);
            self.lay_out_values(&kv);
            // Rows of earlier positions do not see this tile.
            let mut row = base.saturating_sub(first) * self.task.shape.group();
            while row < self.task.query_rows() {
                let left = self.task.query_rows() - row;
                let rows = left.div_ceil(left.div_ceil(S::TILE_ROWS));
                self.attend(s, row..row + rows, base);
                row += rows;
            }
        }
        self.store(s);
    }
}

impl<E: Element> Run<'_, E> {
    /// Copies the queries together and starts all sums.
    #[inline(always)]
    fn load_queries(&mut self) {
        let len = self.task.shape.group() * self.task.shape.head_dim;
        for (to, row) in self.buffers.queries.chunks_exact_mut(len).zip(self.task.rows.clone()) {
            to.copy_from_slice(&self.task.q[self.task.heads_at(row)..][..len]);
        }
        self.buffers.greatest.fill(f32::NEG_INFINITY);
        self.buffers.sums.fill([0.0; LANES]);
        self.buffers.outputs.fill(0.0);
    }

    /// Keys as two panels of 32 positions. A word is what a panel holds
    /// together: one f32, or a pair of bf16.
    #[inline(always)]
    fn lay_out_keys<S: Simd>(&mut self, s: S, kv: &[&[E]; TILE_KEYS]) {
        let dim = self.task.shape.head_dim;
        let key = self.task.kv_head * dim..(self.task.kv_head + 1) * dim;
        let keys: &mut [u32] = bytemuck::cast_slice_mut(self.buffers.keys);
        let (words, _) = keys.as_chunks_mut::<PANEL>();
        let len = words.len() / 2;
        for (i, kv) in kv.as_chunks::<LANES>().0.iter().enumerate() {
            let panel = &mut words[i / 2 * len..][..len];
            let from: [&[u32]; LANES] = std::array::from_fn(|i| bytemuck::cast_slice(&kv[i][key.clone()]));
            let blocks = from.map(|words| words.as_chunks::<LANES>().0);
            let (whole, _) = panel.as_chunks_mut::<LANES>();
            for (block, to) in whole.iter_mut().enumerate() {
                s.transpose(std::array::from_fn(|i| &blocks[i][block]), to, i % 2);
            }
            let done = whole.len() * LANES;
            for (word, to) in panel.iter_mut().enumerate().skip(done) {
                for lane in 0..LANES {
                    to[i % 2 * LANES + lane] = from[lane][word];
                }
            }
        }
    }

    /// Values as panels of 32 elements, two positions at a time.
    #[inline(always)]
    fn lay_out_values(&mut self, kv: &[&[E]; TILE_KEYS]) {
        let dim = self.task.shape.head_dim;
        let at = (self.task.shape.kv_heads + self.task.kv_head) * dim;
        let (pairs, _) = self.buffers.values.as_chunks_mut::<{ 2 * PANEL }>();
        for (panel, pairs) in pairs.chunks_exact_mut(TILE_KEYS / 2).enumerate() {
            let from = at + panel * PANEL;
            let width = PANEL.min(at + dim - from);
            for (two, to) in kv.as_chunks::<2>().0.iter().zip(pairs) {
                if let (Some(even), Some(odd), PANEL) =
                    (two[0][from..].first_chunk(), two[1][from..].first_chunk(), width)
                {
                    E::pair_up(even, odd, to);
                    continue;
                }
                let mut padded = [[E::default(); PANEL]; 2];
                for (padded, row) in padded.iter_mut().zip(two) {
                    padded[..width].copy_from_slice(&row[from..from + width]);
                }
                E::pair_up(&padded[0], &padded[1], to);
            }
        }
    }

    /// Some query rows against the tile at `base`.
    #[inline(always)]
    fn attend<S: Simd>(&mut self, s: S, rows: Range<usize>, base: usize) {
        let shape = self.task.shape;
        let (dim, padded) = (shape.head_dim, shape.padded_dim());
        let buffers = &mut self.buffers;
        let queries = &buffers.queries[rows.start * dim..];
        for (panel, keys) in buffers.keys.chunks_exact(dim * PANEL).enumerate() {
            let q = Rows { values: queries, stride: dim, rows: rows.len() };
            let scores = &mut buffers.scores.as_flattened_mut()[panel * PANEL..];
            let c = Tile { values: scores, stride: TILE_KEYS, accumulate: false };
            <E as Product<E>>::multiply(s, q, keys, c);
        }
        let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
        let first = self.task.sequence.start + self.task.rows.start;
        for (i, row) in rows.clone().enumerate() {
            let seen = first + row / shape.group() + 1 - base;
            buffers.scores[i][seen.min(TILE_KEYS)..].fill(f32::NEG_INFINITY);
            buffers.soften(s, row, i, scale);
        }
        let output = &mut buffers.outputs[rows.start * padded..];
        for (panel, values) in buffers.values.chunks_exact(TILE_KEYS * PANEL).enumerate() {
            let weights = buffers.weights.as_flattened();
            let p = Rows { values: weights, stride: TILE_KEYS, rows: rows.len() };
            let c = Tile { values: &mut output[panel * PANEL..], stride: padded, accumulate: true };
            <E as Product<E>>::multiply(s, p, values, c);
        }
    }

    /// Divides by the sums of the weights and rounds.
    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S) {
        let shape = self.task.shape;
        let outputs = self.buffers.outputs.chunks_exact_mut(shape.padded_dim());
        for (i, (output, sums)) in outputs.zip(&*self.buffers.sums).enumerate() {
            let factor = s.splat(1.0 / s.sum(s.load(sums)));
            for lanes in output.as_chunks_mut::<LANES>().0 {
                s.store(s.mul(s.load(lanes), factor), lanes);
            }
            let row = self.task.rows.start + i / shape.group();
            let at = self.task.heads_at(row) + i % shape.group() * shape.head_dim;
            // SAFETY: no other task has these heads of this row.
            let to = unsafe { self.task.out.part(at, shape.head_dim) };
            let (to, to_rest) = to.as_chunks_mut::<LANES>();
            let (from, from_rest) = output[..shape.head_dim].as_chunks::<LANES>();
            for (to, from) in to.iter_mut().zip(from) {
                E::store(s, s.load(from), to);
            }
            for (to, from) in to_rest.iter_mut().zip(from_rest) {
                *to = E::from_f32(*from);
            }
        }
    }
}

#[cfg(test)]
mod tests;
