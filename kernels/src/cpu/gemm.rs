//! Activations times weights: `out[m][n] = sum over k of a[m][k] * weights[n][k]`.
//!
//! Work is cut into rectangles of rows and panels. The rows of a rectangle stay
//! in the second-level cache while its panels are read once, one after another.

#![expect(unsafe_code, reason = "tasks write different columns of the same rows")]

use std::ops::Range;

use half::bf16;

use super::{
    disjoint::Disjoint,
    element::Element,
    packed::PackedMatrix,
    pool::ComputePool,
    simd::{LANES, Simd, Work, exp2},
    tile::{PANEL, Product, Rows, Tile},
};

/// Activations of a rectangle: well within a usual second-level cache.
const RECTANGLE_BYTES: usize = 384 << 10;

/// Rectangles for each thread, so that a thread held up by something else is helped out.
const RECTANGLES_PER_THREAD: usize = 8;

/// No instruction set has taller tiles; rectangles are multiples of it.
const MAX_TILE_ROWS: usize = 12;

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

/// `out = silu(a * gate) * (a * up)`, rounded to elements. `out` is `[m][rows / 2]`.
///
/// # Panics
/// When the shapes do not fit together or the weights are not gated.
pub fn gemm_gated<A: Element>(pool: &ComputePool, a: &[A], weights: &PackedMatrix, out: &mut [A]) {
    assert!(weights.gated(), "weights are not gated");
    run(pool, a, weights, Finish::Gate(Disjoint::checked(out, a, weights, weights.rows() / 2)));
}

/// What happens to a finished tile.
enum Finish<'a, A> {
    Store(Disjoint<'a, f32>),
    Add(Disjoint<'a, f32>),
    Gate(Disjoint<'a, A>),
}

/// One product, cut into rectangles.
struct Gemm<'a, A> {
    a: &'a [A],
    weights: &'a PackedMatrix,
    finish: Finish<'a, A>,
}

/// A rectangle of a product.
struct Rectangle<'a, A> {
    gemm: &'a Gemm<'a, A>,
    rows: Range<usize>,
    panels: Range<usize>,
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
    let gemm = Gemm { a, weights, finish };
    pool.for_each(gemm.rectangles(pool.threads()), |rectangle| pool.isa().run(rectangle));
}

// === impl Gemm ===

impl<A: Element> Gemm<'_, A> {
    fn rectangles(&self, threads: usize) -> Vec<Rectangle<'_, A>> {
        let rows = self.a.len() / self.weights.cols();
        let fitting = RECTANGLE_BYTES / (self.weights.cols() * size_of::<A>());
        let bands = rows.div_ceil(fitting.max(MAX_TILE_ROWS)).max(1);
        let height = rows.div_ceil(bands).next_multiple_of(MAX_TILE_ROWS).max(MAX_TILE_ROWS);
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

// === impl Rectangle ===

impl<A: Element> Work for Rectangle<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.gemm.weights.cols();
        let mut tile = [0.0; MAX_TILE_ROWS * PANEL];
        for panel in self.panels {
            let weights = self.gemm.weights.panel(panel);
            let mut row = self.rows.start;
            while row < self.rows.end {
                // Tiles of about equal height: a rest of one row would be slow.
                let left = self.rows.end - row;
                let rows = left.div_ceil(left.div_ceil(S::TILE_ROWS));
                let a = Rows { values: &self.gemm.a[row * cols..], stride: cols, rows };
                let c = Tile { values: &mut tile, stride: PANEL, accumulate: false };
                <A as Product<bf16>>::multiply(s, a, weights, c);
                for (r, values) in tile.as_chunks::<PANEL>().0[..rows].iter().enumerate() {
                    self.gemm.finish(s, row + r, panel, values);
                }
                row += rows;
            }
        }
    }
}

impl<A: Element> Gemm<'_, A> {
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
                out.copy_from_slice(&values[..width]);
            }
            Finish::Add(out) => {
                // SAFETY: as above.
                let out = unsafe { out.part(at, width) };
                for (out, value) in out.iter_mut().zip(values) {
                    *out += value;
                }
            }
            Finish::Gate(out) => {
                let [gate, up] = [&values.as_chunks::<LANES>().0[0], &values.as_chunks::<LANES>().0[1]];
                // SAFETY: as above; each panel of 32 makes sixteen outputs.
                let out = unsafe { out.part(row * (rows / 2) + panel * LANES, LANES) };
                let activated = s.mul(silu(s, s.load(gate)), s.load(up));
                if let Some(out) = out.first_chunk_mut() {
                    A::store(s, activated, out);
                }
            }
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let power = exp2(s, s.mul(x, s.splat(-std::f32::consts::LOG2_E)));
    s.div(x, s.add(s.splat(1.0), power))
}

#[cfg(test)]
mod tests;
