//! What an attention task works in: memory that each thread keeps, and the
//! running softmax of its rows.

use std::cell::RefCell;

use super::{TILE_KEYS, Task};
use crate::cpu::{
    element::Element,
    simd::{LANES, Simd, exp2},
};

/// No instruction set has taller tiles.
const MAX_TILE_ROWS: usize = 12;

/// Memory of a thread, as large as its largest task so far.
#[derive(Default)]
pub(super) struct Scratch {
    words: Vec<u32>,
    floats: Vec<f32>,
}

/// A task's parts of the scratch memory.
pub(super) struct Buffers<'a, E> {
    /// `[row][head_dim]`
    pub queries: &'a mut [E],
    /// Two panels of 32 positions.
    pub keys: &'a mut [E],
    /// Panels of 32 elements of 64 positions.
    pub values: &'a mut [E],
    /// Softmax numerators of a tile, rounded.
    pub weights: &'a mut [[E; TILE_KEYS]],
    /// Products of a tile.
    pub scores: &'a mut [[f32; TILE_KEYS]],
    /// `[row][padded head_dim]`, to be divided by the sums.
    pub outputs: &'a mut [f32],
    /// Sums of softmax numerators, by lane.
    pub sums: &'a mut [[f32; LANES]],
    /// Greatest scores so far, in units of log2.
    pub greatest: &'a mut [f32],
}

/// Lends the calling thread's scratch memory.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}

impl<E: Element> Task<'_, E> {
    pub(super) fn buffers<'s>(&self, scratch: &'s mut Scratch) -> Buffers<'s, E> {
        let (rows, dim) = (self.query_rows(), self.shape.head_dim);
        let padded = self.shape.padded_dim();
        let elements = [rows * dim, dim * TILE_KEYS, padded * TILE_KEYS, MAX_TILE_ROWS * TILE_KEYS];
        let floats = [MAX_TILE_ROWS * TILE_KEYS, rows * padded, rows * LANES, rows];
        let words = (elements.iter().sum::<usize>() * size_of::<E>()).div_ceil(size_of::<u32>());
        if scratch.words.len() < words {
            scratch.words.resize(words, 0);
        }
        if scratch.floats.len() < floats.iter().sum() {
            scratch.floats.resize(floats.iter().sum(), 0.0);
        }
        let [queries, keys, values, weights] = cut(bytemuck::cast_slice_mut(&mut scratch.words), elements);
        let [scores, outputs, sums, greatest] = cut(&mut scratch.floats, floats);
        let (weights, scores) = (weights.as_chunks_mut().0, scores.as_chunks_mut().0);
        Buffers { queries, keys, values, weights, scores, outputs, sums: sums.as_chunks_mut().0, greatest }
    }
}

/// Consecutive parts of these lengths.
fn cut<T, const N: usize>(mut slice: &mut [T], lengths: [usize; N]) -> [&mut [T]; N] {
    lengths.map(|length| slice.split_off_mut(..length).unwrap_or_default())
}

impl<E: Element> Buffers<'_, E> {
    /// One step of the running softmax of `row`, whose scores are the tile's
    /// `i`-th: scores to weights, sum and output scaled to the new greatest score.
    #[inline(always)]
    pub(super) fn soften<S: Simd>(&mut self, s: S, row: usize, i: usize, scale: f32) {
        let scores = self.scores[i].as_chunks::<LANES>().0;
        let mut scaled = [s.splat(0.0); TILE_KEYS / LANES];
        for (scaled, scores) in scaled.iter_mut().zip(scores) {
            *scaled = s.mul(s.load(scores), s.splat(scale));
        }
        let before = self.greatest[row];
        let tile = s.max(s.max(scaled[0], scaled[1]), s.max(scaled[2], scaled[3]));
        let greatest = before.max(s.greatest(tile));
        self.greatest[row] = greatest;
        for (scaled, weights) in scaled.iter_mut().zip(self.weights[i].as_chunks_mut::<LANES>().0) {
            *scaled = exp2(s, s.sub(*scaled, s.splat(greatest)));
            E::store(s, *scaled, weights);
        }
        let sum = s.add(s.add(scaled[0], scaled[1]), s.add(scaled[2], scaled[3]));
        let factor = exp2(s, s.sub(s.splat(before), s.splat(greatest)));
        let sums = &mut self.sums[row];
        s.store(s.fma(s.load(sums), factor, sum), sums);
        if greatest > before {
            let padded = self.outputs.len() / self.greatest.len();
            for output in self.outputs[row * padded..][..padded].as_chunks_mut::<LANES>().0 {
                s.store(s.mul(s.load(output), factor), output);
            }
        }
    }
}
