//! All keys of a block, or one range of them.

use std::{f32::consts::LOG2_E, ops::Range};

use super::{
    RANGE_KEYS,
    block::{Block, Keys},
    buffers::{Buffers, SCORES, WEIGHTS},
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
        let keys = self.keys(range);
        for kv_head in self.kv_heads.clone() {
            self.lay_out(s, &keys, kv_head, buffers);
            let seers = self.seers(kv_head, range);
            buffers.part.clear(self.rows_of(kv_head).start..seers.start);
            buffers.part.clear(seers.end..self.rows_of(kv_head).end);
            let Range { start: mut row, end } = seers;
            while row < end {
                // Tiles of about equal height.
                let left = end - row;
                let most = if self.amx().is_some() { MAX_ROWS } else { S::TILE_ROWS };
                let rows = left.div_ceil(left.div_ceil(most));
                self.attend(s, row..row + rows, range, buffers);
                row += rows;
            }
        }
    }

    /// Lays out the keys and values of a head, a panel of positions after the other.
    #[inline(always)]
    fn lay_out<S: Simd>(&self, s: S, keys: &Keys<'_, E>, kv_head: usize, buffers: &mut Buffers<'_, E>) {
        let len = PANEL * self.shape().head_dim;
        let tiles = keys.rows.as_chunks::<PANEL>().0;
        for panel in keys.panels.clone() {
            let is_last = panel + 1 == keys.panels.end;
            match (is_last, kv_head + 1 == self.kv_heads.end) {
                (false, _) => self.prefetch(s, &tiles[panel + 1], kv_head),
                (true, false) => self.prefetch(s, &tiles[keys.panels.start], kv_head + 1),
                (true, true) => (),
            }
            self.lay_out_keys(s, &tiles[panel], kv_head, &mut buffers.keys[panel * len..][..len]);
            self.lay_out_values(&tiles[panel], kv_head, panel, buffers.values);
        }
    }

    /// Keys of 32 positions as a panel. A word is what a panel holds
    /// together: one f32, or a pair of bf16.
    #[inline(always)]
    fn lay_out_keys<S: Simd>(&self, s: S, keys: &[&[E]; PANEL], kv_head: usize, to: &mut [E]) {
        let dim = self.shape().head_dim;
        let key = kv_head * dim..(kv_head + 1) * dim;
        let (words, _) = bytemuck::cast_slice_mut::<_, u32>(to).as_chunks_mut::<PANEL>();
        let len = words.len();
        for (half, keys) in keys.as_chunks::<LANES>().0.iter().enumerate() {
            let from: [&[u32]; LANES] = std::array::from_fn(|i| bytemuck::cast_slice(&keys[i][key.clone()]));
            let blocks = from.map(|words| words.as_chunks::<LANES>().0);
            let (whole, _) = words.as_chunks_mut::<LANES>();
            for (block, to) in whole.iter_mut().enumerate() {
                s.transpose(std::array::from_fn(|i| &blocks[i][block]), to, half);
            }
            let done = whole.len() * LANES;
            if done < len
                && let Some(last) = words.last_chunk_mut::<LANES>()
            {
                // Some of them once more.
                let rows = from.map(|words| words.last_chunk().unwrap_or(&[0; LANES]));
                s.transpose(rows, last, half);
                continue;
            }
            for (word, to) in words.iter_mut().enumerate().skip(done) {
                for lane in 0..LANES {
                    to[half * LANES + lane] = from[lane][word];
                }
            }
        }
    }

    /// Values as panels of 32 elements, two positions at a time: those of the `at`-th 32 positions.
    #[inline(always)]
    fn lay_out_values(&self, keys: &[&[E]; PANEL], kv_head: usize, at: usize, to: &mut [E]) {
        let dim = self.shape().head_dim;
        let first = (self.shape().kv_heads + kv_head) * dim;
        for (panel, to) in to.chunks_exact_mut(RANGE_KEYS * PANEL).enumerate() {
            let from = first + panel * PANEL;
            let width = PANEL.min(first + dim - from);
            let (pairs, _) = to[at * PANEL * PANEL..][..PANEL * PANEL].as_chunks_mut::<{ 2 * PANEL }>();
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

    /// Some query rows against what they see of a range.
    #[inline(always)]
    fn attend<S: Simd>(&self, s: S, rows: Range<usize>, range: usize, buffers: &mut Buffers<'_, E>) {
        let (dim, padded) = (self.shape().head_dim, self.padded_dim());
        let tiles = self.amx().map(|amx| amx.tiles(rows.len()));
        let panels = self.panels(rows.clone(), range);
        let queries = &buffers.queries[rows.start * dim..];
        for panel in panels.clone() {
            let q = Rows { values: queries, stride: dim, rows: rows.len() };
            let scores = &mut buffers.scores[panel * PANEL..];
            let c = Tile { values: scores, stride: SCORES, accumulate: false };
            multiply(s, tiles.as_ref(), q, &buffers.keys[panel * PANEL * dim..][..PANEL * dim], c);
        }
        let span = panels.start * PANEL..panels.end * PANEL;
        for (i, row) in rows.clone().enumerate() {
            let products = &mut buffers.scores[i * SCORES..][..RANGE_KEYS];
            if let Some(cap) = self.shape().soft_cap {
                self.cap(s, &mut products[span.clone()], cap);
            }
            let seen = self.seen_of(row, range);
            products[span.start..seen.start.max(span.start)].fill(f32::NEG_INFINITY);
            products[seen.end.min(span.end)..span.end].fill(f32::NEG_INFINITY);
            let weights = &mut buffers.weights[i * WEIGHTS..][span.clone()];
            buffers.part.soften(s, row, (&products[span.clone()], self.unit()), weights);
        }
        let output = &mut buffers.part.outputs[rows.start * padded..];
        for (panel, values) in buffers.values.chunks_exact(RANGE_KEYS * PANEL).enumerate() {
            let p = Rows { values: &buffers.weights[span.start..], stride: WEIGHTS, rows: rows.len() };
            let c = Tile { values: &mut output[panel * PANEL..], stride: padded, accumulate: false };
            multiply(s, tiles.as_ref(), p, &values[span.start * PANEL..span.end * PANEL], c);
        }
    }

    /// What makes products scores in units of log2: the rest of it, if they are capped before.
    #[inline(always)]
    fn unit(&self) -> f32 {
        let shape = self.shape();
        LOG2_E * if shape.soft_cap.is_some() { 1.0 } else { shape.scale }
    }

    #[inline(always)]
    fn cap<S: Simd>(&self, s: S, products: &mut [f32], cap: f32) {
        for lanes in products.as_chunks_mut::<LANES>().0 {
            s.store(capped(s, s.load(lanes), self.shape().scale, cap), lanes);
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
