//! Activations times weights: `out[m][n] = sum over k of a[m][k] * weights[n][k]`.
//!
//! Work is cut into rectangles of rows and panels. The rows of a rectangle stay
//! in the second-level cache while its panels are read once, one after another.
//!
//! - `strips`: activations for tile registers, if the processor has them
//! - `quants`: activations as whole numbers, for weights that are

#![expect(unsafe_code, reason = "tasks write different columns of the same rows")]

mod quants;
mod strips;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, ops::Range};

use bytemuck::Zeroable;
use half::bf16;

use super::{
    activation::Activation,
    amx::{BLOCK, Line},
    disjoint::Disjoint,
    element::Element,
    packed::{GROUP, Group, PackedMatrix, Panel},
    pool::ComputePool,
    simd::{LANES, Simd, Work},
    tile::{PANEL, Product, Rows, Tile},
};
use quants::Quants;
use strips::Strips;

/// Activations of a rectangle: well within a usual second-level cache.
const RECTANGLE_BYTES: usize = 384 << 10;

/// Rectangles for each thread, so that a thread held up by something else is helped out.
const RECTANGLES_PER_THREAD: usize = 8;

/// No vectors make taller tiles; rectangles are multiples of it, or of a strip.
const MAX_TILE_ROWS: usize = 12;

/// Groups that are unpacked at a time: 16 KiB of bf16.
const GROUPS_AT_ONCE: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        sums: Vec::new(),
        parts: Parts {
            unpacked: vec![Line::zeroed(); GROUPS_AT_ONCE * GROUP * PANEL / BLOCK],
            quants: quants::Memory::ZERO,
        },
    });
}

/// `out = a * weights`, where `a` is `[m][cols]` and `out` is `[m][rows]`.
///
/// # Panics
/// When the shapes do not fit together or the weights are gated.
pub fn gemm<A: Element>(pool: &ComputePool, a: &[A], weights: &PackedMatrix, out: &mut [f32]) {
    assert!(!weights.gated(), "gated weights");
    run(pool, a, weights, Finish::Store(Disjoint::checked(out, a, weights, weights.rows())));
}

/// `out += a * weights`; the product is summed up before it is added.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_add<A: Element>(pool: &ComputePool, a: &[A], weights: &PackedMatrix, out: &mut [f32]) {
    assert!(!weights.gated(), "gated weights");
    run(pool, a, weights, Finish::Add(Disjoint::checked(out, a, weights, weights.rows())));
}

/// `out = activation(a * gate) * (a * up)`, rounded to elements. `out` is `[m][rows / 2]`.
///
/// # Panics
/// When the shapes do not fit together or the weights are not gated.
pub fn gemm_gated<A: Element>(
    pool: &ComputePool,
    a: &[A],
    weights: &PackedMatrix,
    activation: Activation,
    out: &mut [A],
) {
    assert!(weights.gated(), "weights are not gated");
    let out = Disjoint::checked(out, a, weights, weights.rows() / 2);
    run(pool, a, weights, Finish::Gate(out, activation));
}

/// What happens to a finished tile.
enum Finish<'a, A> {
    Store(Disjoint<'a, f32>),
    Add(Disjoint<'a, f32>),
    Gate(Disjoint<'a, A>, Activation),
}

/// One product, cut into rectangles.
struct Gemm<'a, A> {
    a: Activations<'a, A>,
    weights: &'a PackedMatrix,
    finish: Finish<'a, A>,
}

/// All activations of a product, in the form that is multiplied.
enum Activations<'a, A> {
    Rows(&'a [A]),
    Strips(Strips<'a>),
    Quants(Quants<'a>),
}

/// A rectangle of a product.
struct Rectangle<'a, A> {
    gemm: &'a Gemm<'a, A>,
    rows: Range<usize>,
    panels: Range<usize>,
}

/// A rectangle and what it is computed in.
struct Run<'a, A> {
    rectangle: Rectangle<'a, A>,
    scratch: &'a mut Scratch,
}

/// Activations of a rectangle.
enum Band<'a, A> {
    Rows(Rows<'a, A>),
    Strips(strips::Band<'a>),
    Quants(quants::Band<'a>),
}

/// Memory of a thread.
struct Scratch {
    /// `[row][32]` of one panel, as f32.
    sums: Vec<Line>,
    parts: Parts,
}

/// Memory for parts of a product.
struct Parts {
    /// A part of a panel as bf16.
    unpacked: Vec<Line>,
    quants: quants::Memory,
}

impl<'a, T> Disjoint<'a, T> {
    /// `out` as rows of `width`, one for each row of `a`.
    fn checked<A>(out: &'a mut [T], a: &[A], weights: &PackedMatrix, width: usize) -> Self {
        let rows = a.len() / weights.cols();
        assert_eq!(a.len(), rows * weights.cols(), "activations are not whole rows");
        assert_eq!(out.len(), rows * width, "output of another shape");
        Self::new(out)
    }
}

fn run<A: Element>(pool: &ComputePool, a: &[A], weights: &PackedMatrix, finish: Finish<'_, A>) {
    let (cols, rows) = (weights.cols(), a.len() / weights.cols());
    // What is rounded, and how, must not depend on the number of rows.
    let amx = pool.isa().amx().filter(|_| cols.is_multiple_of(BLOCK));
    let is_whole = weights.grouped() && !pool.is_exact();
    pool.with_lines(|lines| {
        let a = match amx {
            _ if is_whole => Activations::Quants(Quants::new(pool, a, cols, lines)),
            Some(amx) => Activations::Strips(Strips::new(pool, amx, a, cols, lines)),
            None => Activations::Rows(a),
        };
        let gemm = Gemm { a, weights, finish };
        pool.for_each(gemm.rectangles(rows, pool.threads()), |rectangle| {
            SCRATCH.with_borrow_mut(|scratch| pool.isa().run(Run { rectangle, scratch }));
        });
    });
}

// === impl Gemm ===

impl<A: Element> Gemm<'_, A> {
    fn rectangles(&self, rows: usize, threads: usize) -> Vec<Rectangle<'_, A>> {
        let step = match &self.a {
            Activations::Rows(_) => MAX_TILE_ROWS,
            Activations::Strips(strips) => strips.rows,
            Activations::Quants(quants) => quants.rows,
        };
        let fitting = RECTANGLE_BYTES / (self.weights.cols() * size_of::<A>());
        let bands = rows.div_ceil(fitting.max(step)).max(1);
        let height = rows.div_ceil(bands).next_multiple_of(step).max(step);
        let stacks = (threads * RECTANGLES_PER_THREAD).div_ceil(bands);
        let width = (self.weights.panels() / stacks).max(1);
        let mut rectangles = Vec::new();
        for top in (0..rows).step_by(height) {
            for left in (0..self.weights.panels()).step_by(width) {
                rectangles.push(Rectangle {
                    gemm: self,
                    rows: top..rows.min(top + height),
                    panels: left..self.weights.panels().min(left + width),
                });
            }
        }
        rectangles
    }
}

// === impl Run ===

impl<A: Element> Work for Run<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rectangle { gemm, rows, panels } = self.rectangle;
        let Scratch { sums, parts } = self.scratch;
        let band = gemm.band(rows.clone());
        sums.resize(band.rows() * PANEL * size_of::<f32>() / size_of::<Line>(), Line::zeroed());
        let sums = bytemuck::cast_slice_mut(sums);
        for panel in panels {
            match gemm.weights.panel(panel) {
                Panel::Bf16(values) => band.multiply(s, 0, values, sums),
                Panel::Int4(groups) => band.multiply_groups(s, groups, parts, sums),
                Panel::Int8(groups) => band.multiply_groups(s, groups, parts, sums),
            }
            for (row, values) in rows.clone().zip(sums.as_chunks::<PANEL>().0) {
                gemm.finish(s, row, panel, values);
            }
        }
    }
}

// === impl Band ===

impl<A: Element> Band<'_, A> {
    /// Of sums.
    fn rows(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.rows,
            Self::Strips(strips) => strips.rows(),
            Self::Quants(quants) => quants.rows(),
        }
    }

    /// The sums over inputs from `input` on, as many as `values` has pairs for: `[input / 2][32][2]`.
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, input: usize, values: &[bf16], sums: &mut [f32]) {
        let band = match self {
            Self::Rows(rows) => rows,
            Self::Strips(strips) => return strips.multiply(input, values, sums),
            Self::Quants(_) => unreachable!("weights of bf16 are not whole numbers"),
        };
        let mut row = 0;
        while row < band.rows {
            // Tiles of about equal height: a rest of one row would be slow.
            let left = band.rows - row;
            let rows = left.div_ceil(left.div_ceil(S::TILE_ROWS));
            let a = Rows { values: &band.values[row * band.stride + input..], stride: band.stride, rows };
            let c = Tile { values: &mut sums[row * PANEL..], stride: PANEL, accumulate: input > 0 };
            <A as Product<bf16>>::multiply(s, a, values, c);
            row += rows;
        }
    }

    /// The same over all inputs, unpacking some groups at a time into the first-level cache.
    #[inline(always)]
    fn multiply_groups<S: Simd, G: Group>(
        &self,
        s: S,
        groups: &[G],
        Parts { unpacked, quants: memory }: &mut Parts,
        sums: &mut [f32],
    ) {
        let unpacked: &mut [bf16] = bytemuck::cast_slice_mut(unpacked);
        if let Self::Quants(quants) = self {
            return quants.multiply(s, groups, memory, sums);
        }
        for (i, groups) in groups.chunks(GROUPS_AT_ONCE).enumerate() {
            for (group, to) in groups.iter().zip(unpacked.as_chunks_mut().0) {
                group.unpack(s, to);
            }
            let values = &unpacked[..groups.len() * GROUP * PANEL];
            self.multiply(s, i * GROUPS_AT_ONCE * GROUP, values, sums);
        }
    }
}

impl<A: Element> Gemm<'_, A> {
    fn band(&self, rows: Range<usize>) -> Band<'_, A> {
        let stride = self.weights.cols();
        match &self.a {
            Activations::Rows(a) => {
                Band::Rows(Rows { values: &a[rows.start * stride..], stride, rows: rows.len() })
            }
            Activations::Strips(strips) => Band::Strips(strips.band(rows)),
            Activations::Quants(quants) => Band::Quants(quants.band(rows)),
        }
    }

    /// Writes one row of a tile.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, row: usize, panel: usize, values: &[f32; PANEL]) {
        let rows = self.weights.rows();
        let width = PANEL.min(rows - panel * PANEL);
        let at = row * rows + panel * PANEL;
        match &self.finish {
            Finish::Store(out) => {
                // SAFETY: rectangles share no row of a panel.
                let out = unsafe { out.part(at, width) };
                match out.as_mut_array() {
                    Some(out) => *out = *values,
                    None => out.copy_from_slice(&values[..width]),
                }
            }
            Finish::Add(out) => {
                // SAFETY: as above.
                let out = unsafe { out.part(at, width) };
                for (out, value) in out.iter_mut().zip(values) {
                    *out += value;
                }
            }
            Finish::Gate(out, activation) => {
                let [gate, up] = [&values.as_chunks::<LANES>().0[0], &values.as_chunks::<LANES>().0[1]];
                // SAFETY: as above; each panel of 32 makes sixteen outputs.
                let out = unsafe { out.part(row * (rows / 2) + panel * LANES, LANES) };
                let activated = s.mul(activation.apply(s, s.load(gate)), s.load(up));
                if let Some(out) = out.first_chunk_mut() {
                    A::store(s, activated, out);
                }
            }
        }
    }
}
