//! Products with few rows, which read their weights once.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{
    Gpu, Half, Read, Weights, Write,
    error::{GpuError, at_least, exactly, multiple},
    gate::Activation,
    launch::Grid,
};

const OP: &str = "gemv";

/// The most rows of one product.
pub const MAX_ROWS: usize = 16;

/// The most rows with which it is always faster than [`Gemm`](super::Gemm), whose
/// results for a row may depend on how many there are. It is
/// faster, by less, up to [`MAX_ROWS`].
pub const FAST_ROWS: usize = 8;

/// Threads of a block: as in `gemv.cu`.
const THREADS: usize = 512;

/// A product of few rows with weights, and what goes after it.
/// Weights are read before ops enqueued earlier have ended:
/// who writes them synchronizes before their first use.
#[derive(Debug)]
pub struct Gemv<'a> {
    /// The weights; inputs are a multiple of 8.
    pub weights: Weights<'a>,
}

// === impl Gemv ===

impl<'a> Gemv<'a> {
    /// The plain product.
    #[must_use]
    pub fn new(weights: Weights<'a>) -> Self {
        Self { weights }
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, 0)
    }

    /// As [`Self::run`], in f32: for logits.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run_f32(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<f32>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, 1)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn add(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, 2)
    }

    /// `out[m][n] = activation(y[m][n]) * y[m][width + n]` of the product `y`, which is
    /// `2 * width` wide and stays in registers.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn gated(
        &self,
        gpu: &Gpu,
        activation: Activation,
        x: &impl Read<Half>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        multiple(OP, "outputs", self.weights.outputs, 2)?;
        self.launch(gpu, x, out, if activation == Activation::Silu { 3 } else { 4 })
    }

    /// `form` is the kernel's.
    fn launch<T>(
        &self,
        gpu: &Gpu,
        x: &impl Read<Half>,
        out: &mut impl Write<T>,
        form: usize,
    ) -> Result<(), GpuError> {
        let Weights { data, outputs, inputs } = &self.weights;
        let (outputs, inputs) = (*outputs, *inputs);
        multiple(OP, "inputs", inputs, 8)?;
        exactly(OP, "weights", data.len(), outputs * inputs)?;
        if x.is_empty() {
            return exactly(OP, "elements out", out.len(), 0);
        }
        multiple(OP, "elements in", x.len(), inputs)?;
        let rows = x.len() / inputs;
        at_least(OP, "most rows", MAX_ROWS, rows)?;
        let (width, block_outputs) = if form >= 3 { (outputs / 2, 8) } else { (outputs, 16) };
        exactly(OP, "elements out", out.len(), rows * width)?;
        let function = if rows <= 8 { "gemv_8" } else { "gemv_16" };
        let args = gpu.args().read(x).read(data).write(out).int(rows).int(width).int(inputs).int(form);
        let grid = Grid::line(width.div_ceil(block_outputs), THREADS);
        // SAFETY: shapes are checked above.
        unsafe { gpu.kernel(OP, function)?.launch(grid, args, gpu.overlaps()) }
    }
}
