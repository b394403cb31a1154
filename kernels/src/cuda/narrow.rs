//! Products with up to 128 rows, on Hopper.
//!
//! - [`Narrow`]: of the card's own elements.
//! - `scaled`: [`NarrowScaled`], of e4m3.
#![expect(unsafe_code, reason = "launches kernels")]

mod scaled;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::DevicePtr;

pub use self::scaled::NarrowScaled;
use super::{
    Gpu, Half, Read, Weights, Write,
    error::{GpuError, at_least, exactly, multiple},
    gate::Activation,
    launch::Grid,
    tensor_map::{Element, tensor_map},
};

const OP: &str = "gemm_narrow";

/// The most rows of one product.
pub const MAX_ROWS: usize = 128;

/// As in `gemm_narrow.cu`: outputs of a warpgroup, and its threads.
const GROUP_ROWS: usize = 64;
const GROUP: usize = 128;

/// Bytes of inputs of a stage.
const PANEL_BYTES: usize = 128;

/// Kernels with room for so many rows, by warpgroups (one, two): names, and stages.
struct Kernels {
    room: usize,
    plain: [(&'static str, usize); 2],
    e4m3: [(&'static str, usize); 2],
}

macro_rules! kernels {
    ($room:literal, $plain:expr, $e4m3:expr) => {
        Kernels {
            room: $room,
            plain: [
                (concat!("gemm_narrow_1_", $room), $plain[0]),
                (concat!("gemm_narrow_2_", $room), $plain[1]),
            ],
            e4m3: [
                (concat!("gemm_narrow_1_", $room, "_e4m3"), $e4m3[0]),
                (concat!("gemm_narrow_2_", $room, "_e4m3"), $e4m3[1]),
            ],
        }
    };
}

/// As in `gemm_narrow.cu`.
const KERNELS: [Kernels; 5] = [
    kernels!(8, [24, 10], [10, 6]),
    kernels!(16, [22, 9], [8, 5]),
    kernels!(32, [18, 7], [8, 5]),
    kernels!(64, [13, 7], [8, 4]),
    kernels!(128, [9, 5], [6, 3]),
];

/// Blocks that share out the inputs of a product, at most: what a cluster can have.
const MAX_SHARES: usize = 8;

/// Stages of inputs that a block has at least: less is not worth a block.
const MIN_STAGES: usize = 4;

/// A product of few rows with weights. Weights are read before ops enqueued earlier have
/// ended: who writes them synchronizes before their first use. A row's results are the
/// same bits whatever other rows are there.
#[derive(Debug)]
pub struct Narrow<'a> {
    weights: Weights<'a>,
}

/// The kernel's parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Job {
    out: u64,
    w_scales: u64,
    x_scales: u64,
    rows: i32,
    outputs: i32,
    inputs: i32,
    form: i32,
    shares: i32,
    unused: i32,
}

/// Weights and rows at their addresses, `[outputs][inputs]` and `[rows][inputs]`.
struct Inputs {
    element: Element,
    w: u64,
    x: u64,
    /// Of each; 0 where there are none.
    scales: [u64; 2],
    outputs: usize,
    inputs: usize,
    rows: usize,
}

/// How a product is cut into blocks. Does not depend on the number of rows.
struct Cut {
    /// Warpgroups of a block: 64 outputs each.
    groups: usize,
    tiles: usize,
    /// Blocks that share out a tile's inputs.
    shares: usize,
}

/// What happens to the sums: numbers as in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Store,
    StoreF32,
    Add,
    Gate(Activation),
}

// === impl Narrow ===

impl<'a> Narrow<'a> {
    /// The product with `weights`; none where the card or their shape is not made for it.
    #[must_use]
    pub fn new(gpu: &Gpu, weights: Weights<'a>) -> Option<Self> {
        let fits = weights.inputs.is_multiple_of(8) && weights.outputs.is_multiple_of(8);
        (gpu.capability() == (9, 0) && fits).then_some(Self { weights })
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::Store)
    }

    /// As [`Self::run`], in f32: for logits.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run_f32(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<f32>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::StoreF32)
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
        multiple(OP, "outputs", self.weights.outputs, 16)?;
        self.launch(gpu, x, out, Form::Gate(activation))
    }

    fn launch<T>(
        &self,
        gpu: &Gpu,
        x: &impl Read<Half>,
        out: &mut impl Write<T>,
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
        let ((w, _w), (x, _x)) = (data.device_ptr(gpu.stream()), x.device_ptr(gpu.stream()));
        let element = gpu.dtype().into();
        Inputs { element, w, x, scales: [0, 0], outputs, inputs, rows }.multiply(gpu, out, form)
    }
}

// === impl Inputs ===

impl Inputs {
    fn multiply<T>(self, gpu: &Gpu, out: &mut impl Write<T>, form: Form) -> Result<(), GpuError> {
        let Self { element, w, x, scales: [w_scales, x_scales], outputs, inputs, rows } = self;
        at_least(OP, "most rows", MAX_ROWS, rows)?;
        let width = if form.is_gated() { outputs / 2 } else { outputs };
        exactly(OP, "elements out", out.len(), rows * width)?;
        let cut = Cut::new(gpu, form, width, inputs.div_ceil(element.panel()));
        let kernel = KERNELS.iter().find(|kernels| kernels.room >= rows);
        let kernels = kernel.ok_or(GpuError::NoKernel { image: OP, function: "for so many rows" })?;
        let room = kernels.room;
        let (name, stages) = match element {
            Element::Bf16 | Element::F16 => kernels.plain[cut.groups - 1],
            Element::E4m3 => kernels.e4m3[cut.groups - 1],
        };
        let (strides, panel) = ([element.bytes() * inputs], element.panel());
        let w = tensor_map(element, w, [inputs, outputs], &strides, [panel, GROUP_ROWS])?;
        let x = tensor_map(element, x, [inputs, rows], &strides, [panel, room])?;
        let (out, _out) = out.device_ptr_mut(gpu.stream());
        let [rows, outputs, inputs] = [rows, width, inputs].map(|size| size as i32);
        let (form, shares) = (form.number(), cut.shares as i32);
        let job = Job { out, w_scales, x_scales, rows, outputs, inputs, form, shares, unused: 0 };
        let args = gpu.args().record(&w).record(&x).record(bytemuck::cast_slice(&[job]));
        let grid = Grid {
            shared_bytes: cut.shared_bytes(room, stages),
            cluster: cut.shares,
            ..Grid::line(cut.tiles * cut.shares, cut.groups * GROUP + 32)
        };
        // SAFETY: the callers have checked the inputs' sizes, the output's is checked above.
        unsafe { gpu.kernel(OP, name)?.launch(grid, args, gpu.overlaps()) }
    }
}

// === impl Form ===

impl Form {
    fn is_gated(self) -> bool {
        matches!(self, Self::Gate(_))
    }

    fn number(self) -> i32 {
        match self {
            Self::Store => 0,
            Self::StoreF32 => 1,
            Self::Add => 2,
            Self::Gate(Activation::Silu) => 3,
            Self::Gate(Activation::GeluTanh) => 4,
        }
    }
}

// === impl Cut ===

impl Cut {
    /// `stages` are of the inputs.
    fn new(gpu: &Gpu, form: Form, width: usize, stages: usize) -> Self {
        let card = gpu.multiprocessors();
        if form.is_gated() || width.div_ceil(2 * GROUP_ROWS) >= card {
            let tile = if form.is_gated() { GROUP_ROWS } else { 2 * GROUP_ROWS };
            return Self { groups: 2, tiles: width.div_ceil(tile), shares: 1 };
        }
        let tiles = width.div_ceil(GROUP_ROWS);
        let fits = |shares: &usize| tiles * shares <= card && stages >= shares * MIN_STAGES;
        Self { groups: 1, tiles, shares: [MAX_SHARES, 4, 2].into_iter().find(fits).unwrap_or(1) }
    }

    /// Stages of weights and rows, or the sums that take their place; barriers and room to align.
    fn shared_bytes(&self, room: usize, stages: usize) -> usize {
        let outputs = self.groups * GROUP_ROWS;
        let ring = stages * PANEL_BYTES * (outputs + room);
        ring.max(4 * room * (outputs + 4)) + 2048
    }
}
