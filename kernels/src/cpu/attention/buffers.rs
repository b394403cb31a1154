//! The memory that a thread works in: as large as its largest block so far.

use std::cell::RefCell;

use bytemuck::Zeroable;

use super::{TILE_KEYS, block::Block, state::State};
use crate::cpu::{
    amx::{Line, MAX_ROWS},
    element::Element,
};

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    lines: Vec<Line>,
    floats: Vec<f32>,
}

/// A block's parts of the scratch memory.
pub(super) struct Buffers<'a, E> {
    /// `[row][head_dim]`
    pub queries: &'a mut [E],
    /// Two panels of 32 positions.
    pub keys: &'a mut [E],
    /// Panels of 32 elements of 64 positions.
    pub values: &'a mut [E],
    /// Softmax numerators of a tile of keys, rounded, of as many rows as are done at a time.
    pub weights: &'a mut [[E; TILE_KEYS]],
    /// Scores of a tile.
    pub scores: &'a mut [[f32; TILE_KEYS]],
    /// Of the range of keys at hand.
    pub part: State<'a>,
    /// Of the ranges before it.
    pub total: State<'a>,
}

/// Lends the calling thread's scratch memory.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}

impl<E: Element> Block<'_, E> {
    /// Floats of the state of its rows.
    pub(super) fn state_floats(&self) -> usize {
        State::floats(self.rows(), self.padded_dim())
    }

    pub(super) fn buffers<'s>(&self, scratch: &'s mut Scratch) -> Buffers<'s, E> {
        let (rows, dim, padded) = (self.rows(), self.shape().head_dim, self.padded_dim());
        let elements = [rows * dim, dim * TILE_KEYS, padded * TILE_KEYS, MAX_ROWS * TILE_KEYS];
        let floats = [MAX_ROWS * TILE_KEYS, self.state_floats(), self.state_floats()];
        let lines = (elements.iter().sum::<usize>() * size_of::<E>()).div_ceil(size_of::<Line>());
        if scratch.lines.len() < lines {
            scratch.lines.resize(lines, Line::zeroed());
        }
        if scratch.floats.len() < floats.iter().sum() {
            scratch.floats.resize(floats.iter().sum(), 0.0);
        }
        let [queries, keys, values, weights] = cut(bytemuck::cast_slice_mut(&mut scratch.lines), elements);
        let [scores, part, total] = cut(&mut scratch.floats, floats);
        let (weights, scores) = (weights.as_chunks_mut().0, scores.as_chunks_mut().0);
        let [part, total] = [part, total].map(|floats| State::within(floats, rows, padded));
        Buffers { queries, keys, values, weights, scores, part, total }
    }
}

/// Consecutive parts of these lengths.
fn cut<T, const N: usize>(mut slice: &mut [T], lengths: [usize; N]) -> [&mut [T]; N] {
    lengths.map(|length| slice.split_off_mut(..length).unwrap_or_default())
}
