//! Weights laid out for the tile kernel.
//!
//! - `grouped`: weights of four and eight bits, in groups that share a scale

mod grouped;
#[cfg(test)]
mod tests;

use std::convert::Infallible;

use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;

pub(super) use grouped::{Bytes, GROUP, Group, Joined, Nibbles, Quads};
pub use grouped::{Q4_1, Q8_0, quantise_q4_1, quantise_q8_0};

use super::tile::PANEL;

/// A weight matrix of `rows` outputs by `cols` inputs, in panels of 32 outputs.
/// The last panel is padded with zeros.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    gated: bool,
    values: Values,
}

/// Panels, one after another.
#[doc(hidden)]
pub enum Values {
    /// `[rows / 32][cols / 2]`
    Bf16(Vec<Pairs>),
    /// `[rows / 32][cols / 32]`
    Int4(Vec<Nibbles>),
    /// `[rows / 32][cols / 32]`
    Int8(Vec<Bytes>),
}

/// Two inputs of a panel of bf16, in whole cache lines: `[32][2]`.
#[doc(hidden)]
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Pairs([bf16; 2 * PANEL]);

/// One panel of a matrix.
pub(super) enum Panel<'a> {
    /// `[cols / 2][32][2]`
    Bf16(&'a [bf16]),
    /// `[cols / 32]`
    Int4(&'a [Nibbles]),
    /// `[cols / 32]`
    Int8(&'a [Bytes]),
}

/// What rows are handed over in: [`bf16`], or blocks of 32 weights as GGUF files write them.
pub trait Unit: Copy + Send + Sync + 'static {
    /// Weights of a unit.
    const VALUES: usize;
    /// Weights of zero.
    const ZERO: Self;
    /// What a panel is made of.
    #[doc(hidden)]
    type Cell: Copy + Send + Sync + Zeroable;
    /// Cells of a panel.
    #[doc(hidden)]
    fn cells(cols: usize) -> usize;
    /// Writes the first rows of a panel, each of `row` units.
    #[doc(hidden)]
    fn place(rows: &[Self], row: usize, panel: &mut [Self::Cell]);
    #[doc(hidden)]
    fn wrap(cells: Vec<Self::Cell>) -> Values;
}

/// Reads rows from the given one on, as many as fit.
pub type ReadRows<'a, T, E> = dyn Fn(usize, &mut [T]) -> Result<(), E> + Sync + 'a;

/// Rows that are read when they are packed, so that the whole matrix is never held twice.
pub struct Part<'a, T, E> {
    /// How many there are.
    pub rows: usize,
    /// Called from several threads.
    pub read: &'a ReadRows<'a, T, E>,
}

/// A matrix of a shape that cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Rows of different lengths, or not whole rows.
    #[error("{values} values are not rows of {cols}")]
    Ragged {
        /// Values given.
        values: usize,
        /// Length of a row.
        cols: usize,
    },
    /// Rows are read in pairs of elements.
    #[error("rows of {cols} elements: the length must be even and not zero")]
    Odd {
        /// Length of a row.
        cols: usize,
    },
    /// Rows of blocks.
    #[error("rows of {cols} elements: blocks of 32 cannot hold them")]
    Blocks {
        /// Length of a row.
        cols: usize,
    },
    /// A gated pair whose halves differ, or cannot be interleaved by sixteen.
    #[error("gate of {gate} rows and up of {up}: must be equal multiples of 16")]
    Gated {
        /// Rows of the gate matrix.
        gate: usize,
        /// Rows of the up matrix.
        up: usize,
    },
}

// === impl PackedMatrix ===

impl PackedMatrix {
    /// Packs matrices of equal `cols`, one below the other. Each is row-major
    /// `[outputs][cols]`.
    ///
    /// # Errors
    /// When a matrix is not whole rows of an even length.
    pub fn pack<T: Unit>(parts: &[&[T]], cols: usize) -> Result<Self, ShapeError> {
        let reads = readers(parts, cols)?;
        let parts: Vec<_> = reads.iter().map(|(rows, read)| Part { rows: *rows, read }).collect();
        let Ok(packed) = Self::read(&parts, cols)?;
        Ok(packed)
    }

    /// Packs a gate and an up matrix so that each panel has sixteen outputs of
    /// both: what [`gemm_gated`](super::gemm_gated) takes.
    ///
    /// # Errors
    /// When the shapes differ or their rows are not a multiple of sixteen.
    pub fn pack_gated<T: Unit>(gate: &[T], up: &[T], cols: usize) -> Result<Self, ShapeError> {
        let reads = readers(&[gate, up], cols)?;
        let parts = [0, 1].map(|i| Part { rows: reads[i].0, read: &reads[i].1 });
        let Ok(packed) = Self::read_gated(&parts, cols)?;
        Ok(packed)
    }

    /// As [`pack`](Self::pack), of rows that are read on the way, by all threads of the
    /// current rayon pool.
    ///
    /// # Errors
    /// When the length of rows is odd; inside, when reading fails.
    pub fn read<T: Unit, E: Send>(
        parts: &[Part<'_, T, E>],
        cols: usize,
    ) -> Result<Result<Self, E>, ShapeError> {
        check::<T>(cols)?;
        let rows = parts.iter().map(|part| part.rows).sum();
        let row = cols / T::VALUES;
        let values = fill::<T, E>(rows, cols, |panel, buffer| {
            let (mut skip, mut done) = (panel * PANEL, 0);
            for part in parts {
                let count = part.rows.saturating_sub(skip).min(PANEL - done);
                if count > 0 {
                    (part.read)(skip, &mut buffer[done * row..(done + count) * row])?;
                }
                skip = skip.saturating_sub(part.rows);
                done += count;
            }
            Ok(done)
        });
        Ok(values.map(|values| Self { rows, cols, gated: false, values }))
    }

    /// As [`pack_gated`](Self::pack_gated), of rows that are read on the way.
    ///
    /// # Errors
    /// As [`pack_gated`](Self::pack_gated); inside, when reading fails.
    pub fn read_gated<T: Unit, E: Send>(
        [gate, up]: &[Part<'_, T, E>; 2],
        cols: usize,
    ) -> Result<Result<Self, E>, ShapeError> {
        check::<T>(cols)?;
        let half = PANEL / 2;
        if gate.rows != up.rows || !gate.rows.is_multiple_of(half) {
            return Err(ShapeError::Gated { gate: gate.rows, up: up.rows });
        }
        let rows = 2 * gate.rows;
        let values = fill::<T, E>(rows, cols, |panel, buffer| {
            let (gates, ups) = buffer.split_at_mut(half * cols / T::VALUES);
            (gate.read)(panel * half, gates)?;
            (up.read)(panel * half, ups)?;
            Ok(PANEL)
        });
        Ok(values.map(|values| Self { rows, cols, gated: true, values }))
    }

    /// Outputs.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed values.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Bf16(values) => size_of_val(values.as_slice()),
            Values::Int4(groups) => size_of_val(groups.as_slice()),
            Values::Int8(groups) => size_of_val(groups.as_slice()),
        }
    }

    /// Reads back row `row` as the products see it: the embedding of a token, when
    /// input and output embeddings are one matrix.
    ///
    /// # Panics
    /// When there is no such row or `to` is not of `cols` elements.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows && to.len() == self.cols);
        let lane = row % PANEL;
        match self.panel(row / PANEL) {
            Panel::Bf16(values) => {
                let (pairs, _) = values.as_chunks::<{ 2 * PANEL }>();
                for (pair, two) in pairs.iter().zip(to.as_chunks_mut::<2>().0) {
                    *two = [pair[2 * lane].to_f32(), pair[2 * lane + 1].to_f32()];
                }
            }
            Panel::Int4(groups) => read_groups(groups, lane, to),
            Panel::Int8(groups) => read_groups(groups, lane, to),
        }
    }

    /// Whether weights are whole numbers in groups.
    pub(super) fn grouped(&self) -> bool {
        !matches!(self.values, Values::Bf16(_))
    }

    pub(super) fn gated(&self) -> bool {
        self.gated
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    #[inline]
    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let pairs = self.cols / 2;
        let groups = self.cols / GROUP;
        match &self.values {
            Values::Bf16(values) => Panel::Bf16(bytemuck::cast_slice(&values[index * pairs..][..pairs])),
            Values::Int4(values) => Panel::Int4(&values[index * groups..][..groups]),
            Values::Int8(values) => Panel::Int8(&values[index * groups..][..groups]),
        }
    }
}

// === impl bf16 ===

impl Unit for bf16 {
    const VALUES: usize = 1;
    const ZERO: Self = Self::ZERO;
    type Cell = Pairs;

    fn cells(cols: usize) -> usize {
        cols / 2
    }

    fn place(rows: &[Self], row: usize, panel: &mut [Pairs]) {
        /// Pairs that lie in one cache line of a row.
        const LINE: usize = 16;
        let (pairs, _) = bytemuck::cast_slice_mut(panel).as_chunks_mut::<2>();
        // What is written between two lanes stays in the first-level cache.
        for (line, pairs) in pairs.chunks_mut(LINE * PANEL).enumerate() {
            for (lane, values) in rows.chunks_exact(row).enumerate() {
                let from = values[line * 2 * LINE..].as_chunks::<2>().0;
                for (to, from) in pairs.chunks_exact_mut(PANEL).zip(from) {
                    to[lane] = *from;
                }
            }
        }
    }

    fn wrap(cells: Vec<Pairs>) -> Values {
        Values::Bf16(cells)
    }
}

/// Fills all panels. `read` reads the rows of one and says how many there are.
fn fill<T: Unit, E: Send>(
    rows: usize,
    cols: usize,
    read: impl Fn(usize, &mut [T]) -> Result<usize, E> + Sync,
) -> Result<Values, E> {
    let row = cols / T::VALUES;
    let mut cells = bytemuck::zeroed_vec(rows.div_ceil(PANEL) * T::cells(cols));
    let panels = cells.par_chunks_mut(T::cells(cols)).enumerate();
    let buffer = || vec![T::ZERO; PANEL * row];
    panels.try_for_each_init(buffer, |buffer, (index, panel)| {
        let rows = read(index, buffer)?;
        T::place(&buffer[..rows * row], row, panel);
        Ok(())
    })?;
    Ok(T::wrap(cells))
}

fn read_groups<G: Group>(groups: &[G], lane: usize, to: &mut [f32]) {
    for (group, to) in groups.iter().zip(to.as_chunks_mut::<GROUP>().0) {
        for (i, value) in to.iter_mut().enumerate() {
            *value = group.get(lane, i).to_f32();
        }
    }
}

/// Rows in memory: how many, and what reads them.
type Reader<'a, T> = (usize, Box<ReadRows<'a, T, Infallible>>);

/// Parts in memory as parts to be read. All must be whole rows.
fn readers<'a, T: Unit>(parts: &[&'a [T]], cols: usize) -> Result<Vec<Reader<'a, T>>, ShapeError> {
    check::<T>(cols)?;
    let row = cols / T::VALUES;
    if let Some(part) = parts.iter().find(|part| !part.len().is_multiple_of(row)) {
        return Err(ShapeError::Ragged { values: part.len() * T::VALUES, cols });
    }
    let reader = |part: &&'a [T]| -> Reader<'a, T> {
        let part = *part;
        let read = move |first: usize, to: &mut [T]| {
            to.copy_from_slice(&part[first * row..][..to.len()]);
            Ok(())
        };
        (part.len() / row, Box::new(read))
    };
    Ok(parts.iter().map(reader).collect())
}

/// Whether rows may have this length.
fn check<T: Unit>(cols: usize) -> Result<(), ShapeError> {
    if cols == 0 || !cols.is_multiple_of(2) {
        return Err(ShapeError::Odd { cols });
    }
    match cols.is_multiple_of(T::VALUES) {
        true => Ok(()),
        false => Err(ShapeError::Blocks { cols }),
    }
}
