//! All keys of a block, or one range of them.

use std::{f32::consts::LOG2_E, ops::Range};

use super::{
    RANGE_KEYS, TILE_KEYS,
    block::{Block, Keys},
    buffers::Buffers,
    state::State,
};
use crate::cpu::{
    amx::{BLOCK, Blocks, MAX_ROWS, Tiles},
    element::Element,
    simd::{LANES, Simd, Work},
    softcap::capped,
    tile::{PANEL, Product, Rows, Tile},
};

/// Ranges of keys, one after another.
pub(super) struct Run<'a, E> {
    pub block: &'a Block<'a, E>,
    pub ranges: Range<usize>,
    pub buffers: Buffers<'a, E>,
    /// Where the state of the one range goes, if it is not all of the block.
    pub state: Option<&'a mut [f32]>,
}

/// The end of a block whose ranges were done by themselves.
pub(super) struct Merge<'a, E> {
    pub block: &'a Block<'a, E>,
    /// States of its ranges.
    pub states: &'a mut [f32],
}

impl<E: Element> Work for Run<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block, ranges, mut buffers, state } = self;
        let is_all = state.is_none();
        if let Some(state) = state {
            buffers.part = State::within(state, block.rows(), block.padded_dim());
        }
        block.load_queries(buffers.queries);
        for range in ranges.clone() {
            block.visit(s, range, &mut buffers);
            match range == ranges.start {
                true => std::mem::swap(&mut buffers.total, &mut buffers.part),
                false => buffers.total.merge(s, &mut buffers.part),
            }
        }
        if is_all {
            buffers.total.finish(s);
            block.store(s, buffers.total.outputs);
        }
    }
}

impl<E: Element> Work for Merge<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { block, states } = self;
        let mut states = states
            .chunks_exact_mut(block.state_floats())
            .map(|state| State::within(state, block.rows(), block.padded_dim()));
        let Some(mut total) = states.next() else { return };
        for mut state in states {
            total.merge(s, &mut state);
        }
        total.finish(s);
        block.store(s, total.outputs);
    }
}

// === impl Block ===

impl<E: Element> Block<'_, E> {
    /// Visits the keys of a range: afterwards `buffers.part` is its state.
    #[inline(always)]
    fn visit<S: Simd>(&self, s: S, range: usize, buffers: &mut Buffers<'_, E>) {
        buffers.part.clear();
        let seen = self.seen();
        let start = (range * RANGE_KEYS).max(seen.start / TILE_KEYS * TILE_KEYS);
        let end = seen.end.min((range + 1) * RANGE_KEYS);
        let mut next = self.keys(start);
        for base in (start..end).step_by(TILE_KEYS) {
            let keys = next;
            next = self.keys(base + TILE_KEYS);
            for kv_head in self.kv_heads.clone() {
                match kv_head + 1 < self.kv_heads.end {
                    true => self.prefetch(s, &keys, kv_head + 1),
                    false => self.prefetch(s, &next, self.kv_heads.start),
                }
                self.lay_out_keys(s, &keys, kv_head, buffers.keys);
                self.lay_out_values(&keys, kv_head, buffers.values);
                let Range { start: mut row, end } = self.seers(kv_head, base);
                while row < end {
                    // Tiles of about equal height.
                    let left = end - row;
                    let most = if self.amx().is_some() { MAX_ROWS } else { S::TILE_ROWS };
                    let rows = left.div_ceil(left.div_ceil(most));
                    self.attend(s, row..row + rows, base, buffers);
                    row += rows;
                }
            }
        }
    }

    /// Keys as two panels of 32 positions. A word is what a panel holds
    /// together: one f32, or a pair of bf16.
    #[inline(always)]
    fn lay_out_keys<S: Simd>(&self, s: S, keys: &Keys<'_, E>, kv_head: usize, to: &mut [E]) {
        let dim = self.shape().head_dim;
        let key = kv_head * dim..(kv_head + 1) * dim;
        let to: &mut [u32] = bytemuck::cast_slice_mut(to);
        let (words, _) = to.as_chunks_mut::<PANEL>();
        let len = words.len() / 2;
        for (i, keys) in keys.as_chunks::<LANES>().0.iter().enumerate() {
            let panel = &mut words[i / 2 * len..][..len];
            let from: [&[u32]; LANES] = std::array::from_fn(|i| bytemuck::cast_slice(&keys[i][key.clone()]));
            let blocks = from.map(|words| words.as_chunks::<LANES>().0);
            let (whole, _) = panel.as_chunks_mut::<LANES>();
            for (block, to) in whole.iter_mut().enumerate() {
                s.transpose(std::array::from_fn(|i| &blocks[i][block]), to, i % 2);
            }
            let done = whole.len() * LANES;
            if done < len
                && let Some(last) = panel.last_chunk_mut::<LANES>()
            {
                // Some of them once more.
                let rows = from.map(|words| words.last_chunk().unwrap_or(&[0; LANES]));
                s.transpose(rows, last, i % 2);
                continue;
            }
            for (word, to) in panel.iter_mut().enumerate().skip(done) {
                for lane in 0..LANES {
                    to[i % 2 * LANES + lane] = from[lane][word];
                }
            }
        }
    }

    /// Values as panels of 32 elements, two positions at a time.
    #[inline(always)]
    fn lay_out_values(&self, keys: &Keys<'_, E>, kv_head: usize, to: &mut [E]) {
        let dim = self.shape().head_dim;
        let at = (self.shape().kv_heads + kv_head) * dim;
        let (pairs, _) = to.as_chunks_mut::<{ 2 * PANEL }>();
        for (panel, pairs) in pairs.chunks_exact_mut(TILE_KEYS / 2).enumerate() {
            let from = at + panel * PANEL;
            let width = PANEL.min(at + dim - from);
            for (two, to) in keys.as_chunks::<2>().0.iter().zip(pairs) {
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
    fn attend<S: Simd>(&self, s: S, rows: Range<usize>, base: usize, buffers: &mut Buffers<'_, E>) {
        let shape = self.shape();
        let (dim, padded) = (shape.head_dim, self.padded_dim());
        let tiles = self.amx().map(|amx| amx.tiles(rows.len()));
        let queries = &buffers.queries[rows.start * dim..];
        for (panel, keys) in buffers.keys.chunks_exact(dim * PANEL).enumerate() {
            let q = Rows { values: queries, stride: dim, rows: rows.len() };
            let scores = &mut buffers.scores.as_flattened_mut()[panel * PANEL..];
            let c = Tile { values: scores, stride: TILE_KEYS, accumulate: false };
            multiply(s, tiles.as_ref(), q, keys, c);
        }
        for (i, row) in rows.clone().enumerate() {
            let scores = &mut buffers.scores[i];
            self.score(s, scores);
            let position = self.position(row);
            scores[TILE_KEYS.min(position + 1 - base)..].fill(f32::NEG_INFINITY);
            scores[..shape.first_seen(position).saturating_sub(base)].fill(f32::NEG_INFINITY);
            buffers.part.soften(s, row, scores, &mut buffers.weights[i]);
        }
        let output = &mut buffers.part.outputs[rows.start * padded..];
        for (panel, values) in buffers.values.chunks_exact(TILE_KEYS * PANEL).enumerate() {
            let weights = buffers.weights.as_flattened();
            let p = Rows { values: weights, stride: TILE_KEYS, rows: rows.len() };
            let c = Tile { values: &mut output[panel * PANEL..], stride: padded, accumulate: true };
            multiply(s, tiles.as_ref(), p, values, c);
        }
    }

    /// Products to scores in units of log2.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, products: &mut [f32; TILE_KEYS]) {
        let shape = self.shape();
        for lanes in products.as_chunks_mut::<LANES>().0 {
            let scores = match shape.soft_cap {
                Some(cap) => s.mul(capped(s, s.load(lanes), shape.scale, cap), s.splat(LOG2_E)),
                None => s.mul(s.load(lanes), s.splat(shape.scale * LOG2_E)),
            };
            s.store(scores, lanes);
        }
    }
}

/// `a` times a panel, in tile registers if there are any.
#[inline(always)]
fn multiply<S: Simd, E: Element>(s: S, tiles: Option<&Tiles>, a: Rows<'_, E>, panel: &[E], c: Tile<'_>) {
    match (tiles, E::as_bf16(a.values), E::as_bf16(panel)) {
        (Some(tiles), Some(values), Some(panel)) => {
            tiles.multiply(Blocks { values, stride: a.stride, step: BLOCK, parts: 1 }, panel, c);
        }
        _ => <E as Product<E>>::multiply(s, a, panel, c),
    }
}
