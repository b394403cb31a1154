//! Products of matrices through cuBLASLt, with algorithms found by timing.
//!
//! - [`Gemm`]: of the card's own elements. [`GemmScaled`]: of e4m3 with a scale for each row.
//! - `blas`: cuBLASLt's handles, and one product with one algorithm.
//! - `plans`: the products that are prepared, with the algorithms that were found.
//! - `search`: the candidates of a shape, timed with weights that are not in L2.
//! - `cache`: what was found, on disk, for each card and version of cuBLASLt.
//!
//! What was timed for a number of rows is used for all numbers of rows down to
//! the next one timed. A shape that was not timed gets cuBLASLt's first choice.

mod blas;
mod cache;
mod plans;
mod search;

use std::path::Path;

use cudarc::driver::DevicePtr;

use self::{
    blas::{Input, Kind},
    plans::Plans,
};
pub use self::{cache::Found, search::Timed};
use super::{
    Gpu, Half, Read, Scaled, Weights, Write,
    error::{GpuError, exactly, multiple},
};

const OP: &str = "gemm";

/// What outputs of products may be.
pub trait Output: cudarc::driver::DeviceRepr {
    /// Whether it is `f32`, not [`Half`].
    const IS_F32: bool;
}

impl Output for Half {
    const IS_F32: bool = false;
}

impl Output for f32 {
    const IS_F32: bool = true;
}

/// Sizes of a product: `out[m][n]` = sum over k of `x[m][k] * w[n][k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sizes {
    /// Outputs of a row.
    pub n: usize,
    /// Inputs of a row.
    pub k: usize,
    /// Rows.
    pub m: usize,
}

/// What a product does to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Writes it.
    Store,
    /// Adds to what it holds.
    Add,
}

/// cuBLASLt on one stream.
#[derive(Debug)]
pub struct Gemm(Plans);

/// As [`Gemm`], with inputs in e4m3; on Hopper alone.
#[derive(Debug)]
pub struct GemmScaled(Plans);

// === impl Then ===

impl Then {
    /// What remains of the old output.
    const fn keep(self) -> f32 {
        match self {
            Self::Store => 0.0,
            Self::Add => 1.0,
        }
    }
}

// === impl Gemm ===

impl Gemm {
    /// For `gpu`'s stream. Algorithms found by [`Self::tune`] are kept in
    /// `cache_folder`, if one is given, and read from there now.
    ///
    /// # Errors
    /// When there is no cuBLASLt or no memory for its workspace.
    pub fn new(gpu: &Gpu, cache_folder: Option<&Path>) -> Result<Self, GpuError> {
        Plans::new(gpu, Kind::Plain, cache_folder).map(Self)
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn run<T: Output>(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<Half>,
        out: &mut impl Write<T>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, Then::Store)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn add(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<Half>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, Then::Add)
    }

    /// Finds the fastest algorithm for each of `shapes` that has none yet, where sums are
    /// stored or added, and keeps them. Takes some hundred milliseconds a shape, and up to
    /// some hundred MB for the time.
    ///
    /// # Errors
    /// When memory is short or cuBLASLt fails.
    pub fn tune(&self, shapes: &[Sizes], then: Then) -> Result<Vec<(Sizes, Timed)>, GpuError> {
        self.0.tune(shapes, then)
    }

    fn enqueue<T: Output>(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<Half>,
        out: &mut impl Write<T>,
        then: Then,
    ) -> Result<(), GpuError> {
        let (n, k) = (weights.outputs, weights.inputs);
        multiple(OP, "inputs", k, 8)?;
        exactly(OP, "weights", weights.data.len(), n * k)?;
        if x.is_empty() {
            return exactly(OP, "elements out", out.len(), 0);
        }
        multiple(OP, "elements in", x.len(), k)?;
        let m = x.len() / k;
        exactly(OP, "elements out", out.len(), m * n)?;
        let stream = self.0.gpu().stream();
        let ((data, _w), (x, _x)) = (weights.data.device_ptr(stream), x.device_ptr(stream));
        let [w, x] = [data, x].map(|data| Input { data, scales: 0 });
        self.0.enqueue(Sizes { n, k, m }, (w, x), out, then.keep())
    }
}

// === impl GemmScaled ===

impl GemmScaled {
    /// As [`Gemm::new`].
    ///
    /// # Errors
    /// When there is no cuBLASLt or no memory for its workspace.
    pub fn new(gpu: &Gpu, cache_folder: Option<&Path>) -> Result<Self, GpuError> {
        Plans::new(gpu, Kind::E4m3, cache_folder).map(Self)
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn run(
        &self,
        weights: &Scaled<'_>,
        x: &Scaled<'_>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, Then::Store)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn add(
        &self,
        weights: &Scaled<'_>,
        x: &Scaled<'_>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, Then::Add)
    }

    /// As [`Gemm::tune`].
    ///
    /// # Errors
    /// When memory is short or cuBLASLt fails.
    pub fn tune(&self, shapes: &[Sizes], then: Then) -> Result<Vec<(Sizes, Timed)>, GpuError> {
        self.0.tune(shapes, then)
    }

    fn enqueue(
        &self,
        weights: &Scaled<'_>,
        x: &Scaled<'_>,
        out: &mut impl Write<Half>,
        then: Then,
    ) -> Result<(), GpuError> {
        let sizes = Sizes { n: weights.rows(), k: weights.width, m: x.rows() };
        let Sizes { n, k, m } = sizes;
        multiple(OP, "inputs", k, 16)?;
        multiple(OP, "outputs", n, 16)?;
        exactly(OP, "weights", weights.data.len(), n * k)?;
        exactly(OP, "elements in", x.data.len(), m * k)?;
        exactly(OP, "elements out", out.len(), m * n)?;
        if m == 0 {
            return Ok(());
        }
        let stream = self.0.gpu().stream();
        let ((w_data, _w), (w_scales, _ws)) =
            (weights.data.device_ptr(stream), weights.scales.device_ptr(stream));
        let ((x_data, _x), (x_scales, _xs)) = (x.data.device_ptr(stream), x.scales.device_ptr(stream));
        let inputs = (Input { data: w_data, scales: w_scales }, Input { data: x_data, scales: x_scales });
        self.0.enqueue(sizes, inputs, out, then.keep())
    }
}
