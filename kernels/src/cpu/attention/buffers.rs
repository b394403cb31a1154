//! The memory that a thread works in: as large as its largest block so far.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

use super::{RANGE_KEYS, block::Block, state::State};
use crate::cpu::{
    amx::{Line, MAX_ROWS},
    element::Element,
    simd::LANES,
    tile::PANEL,
};

/// From a row of scores to the next. Rows that lie whole pages apart are taken for one
/// another by the processor when one is read and the other written.
pub(super) const SCORES: usize = RANGE_KEYS + LANES;

/// From a row of weights to the next.
pub(super) const WEIGHTS: usize = RANGE_KEYS + PANEL;

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    elements: Vec<Line>,
    floats: Vec<Line>,
}

/// A block's parts of the scratch memory.
pub(super) struct Buffers<'a, E> {
    /// `[row][head_dim]`
    pub queries: &'a mut [E],
    /// Panels of 32 positions of a range.
    pub keys: &'a mut [E],
    /// Panels of 32 elements of a range.
    pub values: &'a mut [E],
    /// Softmax numerators of a range, rounded, of as many rows as are done at a time.
    pub weights: &'a mut [E],
    /// Scores of a range.
    pub scores: &'a mut [f32],
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
        let elements = [rows * dim, dim * RANGE_KEYS, padded * RANGE_KEYS, MAX_ROWS * WEIGHTS];
        let floats = [MAX_ROWS * SCORES, self.state_floats(), self.state_floats()];
        let [queries, keys, values, weights] = cut(&mut scratch.elements, elements);
        let [scores, part, total] = cut(&mut scratch.floats, floats);
        let [part, total] = [part, total].map(|floats| State::within(floats, rows, padded));
        Buffers { queries, keys, values, weights, scores, part, total }
    }
}

/// Consecutive parts of these lengths, which begin with whole lines where lengths are lines.
fn cut<T: Pod, const N: usize>(memory: &mut Vec<Line>, lengths: [usize; N]) -> [&mut [T]; N] {
    let lines = (lengths.iter().sum::<usize>() * size_of::<T>()).div_ceil(size_of::<Line>());
    if memory.len() < lines {
        memory.resize(lines, Line::zeroed());
    }
    let mut rest: &mut [T] = bytemuck::cast_slice_mut(memory);
    lengths.map(|length| rest.split_off_mut(..length).unwrap_or_default())
}
