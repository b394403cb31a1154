//! Products with many rows, on Hopper.
#![expect(unsafe_code, reason = "launches kernels")]

use bytemuck::{Pod, Zeroable};
use cudarc::driver::DevicePtr;

use super::{
    Gpu, Half, Read, Weights, Write,
    error::{GpuError, exactly, multiple},
    gate::Activation,
    launch::Grid,
    tensor_map::{Element, PANEL, tensor_map},
};

const OP: &str = "gemm_wide";

/// As in `gemm_wide.cu`: blocks of a cluster, rows and rows of weights that one asks for, stages,
/// and threads.
const CLUSTER: usize = 2;
const ROWS: usize = 128;
const HALF: usize = 128;
const STAGES: usize = 4;
const THREADS: usize = 3 * 128;

/// Clusters' rows that are taken together: 2,048 rows of 4,096 elements are a third of L2.
const BAND: usize = 8;

/// The stages, barriers and room to align.
const SHARED_BYTES: usize = STAGES * (ROWS + CLUSTER * HALF) * PANEL * 2 + 2048;

/// A product of many rows with weights. A row's results are the same bits whatever other
/// rows are there.
#[derive(Debug)]
pub struct Wide<'a> {
    weights: Weights<'a>,
}

/// The kernel's parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Job {
    out: u64,
    rows: i32,
    outputs: i32,
    inputs: i32,
    band: i32,
}

/// What happens to the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Store,
    Add,
    Gate(Activation),
}

// === impl Form ===

impl Form {
    fn is_gated(self) -> bool {
        matches!(self, Self::Gate(_))
    }

    fn function(self) -> &'static str {
        match self {
            Self::Store => "gemm_wide_store",
            Self::Add => "gemm_wide_add",
            Self::Gate(Activation::Silu) => "gemm_wide_silu",
            Self::Gate(Activation::GeluTanh) => "gemm_wide_gelu",
        }
    }
}

// === impl Wide ===

impl<'a> Wide<'a> {
    /// The product with `weights`; none where the card or their shape is not made for it.
    #[must_use]
    pub fn new(gpu: &Gpu, weights: Weights<'a>) -> Option<Self> {
        let fits = weights.inputs.is_multiple_of(8) && weights.outputs.is_multiple_of(16);
        (gpu.capability() == (9, 0) && fits).then_some(Self { weights })
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::Store)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn add(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::Add)
    }

    /// `out[m][n] = activation(y[m][n]) * y[m][width + n]` of the product `y`, which is
    /// `2 * width` wide and is never written.
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
        self.launch(gpu, x, out, Form::Gate(activation))
    }

    fn launch(
        &self,
        gpu: &Gpu,
        x: &impl Read<Half>,
        out: &mut impl Write<Half>,
        form: Form,
    ) -> Result<(), GpuError> {
        let Weights { data, outputs, inputs } = &self.weights;
        let (outputs, inputs) = (*outputs, *inputs);
        exactly(OP, "weights", data.len(), outputs * inputs)?;
        if x.is_empty() {
            return exactly(OP, "elements out", out.len(), 0);
        }
        multiple(OP, "elements in", x.len(), inputs)?;
        let rows = x.len() / inputs;
        let (width, tile) = if form.is_gated() { (outputs / 2, HALF) } else { (outputs, CLUSTER * HALF) };
        exactly(OP, "elements out", out.len(), rows * width)?;
        let ((w, _w), (x, _x)) = (data.device_ptr(gpu.stream()), x.device_ptr(gpu.stream()));
        let (element, strides) = (Element::from(gpu.dtype()), [2 * inputs]);
        let w = tensor_map(element, w, [inputs, outputs], &strides, [PANEL, HALF])?;
        let x = tensor_map(element, x, [inputs, rows], &strides, [PANEL, ROWS])?;
        let (out, _out) = out.device_ptr_mut(gpu.stream());
        let tiles = rows.div_ceil(CLUSTER * ROWS) * width.div_ceil(tile);
        let clusters = tiles.min(gpu.multiprocessors() / CLUSTER);
        let [rows, outputs, inputs] = [rows, width, inputs].map(|size| size as i32);
        let job = Job { out, rows, outputs, inputs, band: BAND as i32 };
        let args = gpu.args().record(&w).record(&x).record(bytemuck::cast_slice(&[job]));
        let grid =
            Grid { shared_bytes: SHARED_BYTES, cluster: CLUSTER, ..Grid::line(clusters * CLUSTER, THREADS) };
        // SAFETY: sizes are checked above.
        unsafe { gpu.kernel(OP, form.function())?.launch(grid, args, gpu.overlaps()) }
    }
}
