//! Attention of one new token per sequence.
#![expect(unsafe_code, reason = "launches kernels and asks the driver how many fit")]

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{
    CudaSlice,
    sys::{self, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST_SHARED},
};

use super::{Attention, OP, Paged, address, address_mut, whole};
use crate::cuda::{
    Gpu, Half, Read, Write,
    error::{GpuError, Named, at_least, exactly, multiple},
    launch::{Grid, Kernel},
    rope::{KvForm, PoolShape},
};

const IMAGE: &str = "attention_decode";

/// As in the kernel: warps of a block, tokens of a warp's step, ints of the
/// schedule for each block, and what the schedule has room for.
const WARPS: usize = 4;
const TILE: usize = 16;
const START_INTS: usize = 8;
const MAX_SEQUENCES: usize = 4096;

/// Where sequences are cut to spread them over the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Wherever all multiprocessors get the same work: fastest. The order of sums
    /// depends on the other sequences.
    Even,
    /// At multiples of so many positions (a multiple of 64), nowhere else: a result has
    /// the same bits in any batch.
    Every(usize),
}

/// The most that one call may bring.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of all of them together; matters to [`Split::Every`] alone.
    pub tokens: usize,
}

/// The kernel for a shape, and memory for partial results: shared by all layers.
#[derive(Debug)]
pub struct Decode {
    kernel: Kernel,
    shape: PoolShape,
    heads: usize,
    split: Split,
    limits: Limits,
    grid: Grid,
    slots: usize,
    partial: CudaSlice<f32>,
    arrived: CudaSlice<u32>,
}

/// A step's work cut into equal shares, for layers with the same window.
#[derive(Debug)]
pub struct Shares {
    window: Option<usize>,
    schedule: CudaSlice<i32>,
}

/// The kernel's parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Parameter {
    q: u64,
    out: u64,
    pool: u64,
    page_table: u64,
    kv_len: u64,
    schedule: u64,
    partial: u64,
    arrived: u64,
    page_stride: i64,
    layer_offset: i64,
    slots: i64,
    q_stride: i32,
    out_stride: i32,
    heads: i32,
    kv_heads: i32,
    pages: i32,
    page_tokens: i32,
    max_pages: i32,
    window: i32,
    scale: f32,
    cap: f32,
}

// === impl Decode ===

impl Decode {
    /// Chooses a kernel and allocates.
    ///
    /// # Errors
    /// When there is no kernel for the shape, or no memory.
    pub fn new(
        gpu: &Gpu,
        heads: usize,
        shape: PoolShape,
        split: Split,
        limits: Limits,
    ) -> Result<Self, GpuError> {
        multiple(OP, "query heads", heads, shape.kv_heads)?;
        at_least(OP, "most query heads of a group", 16, heads / shape.kv_heads)?;
        at_least(OP, "most sequences", MAX_SEQUENCES, limits.sequences)?;
        if let Split::Every(tokens) = split {
            multiple(OP, "split", tokens, WARPS * TILE)?;
        }
        let (kernel, shared_bytes) = choose(gpu, &shape, heads / shape.kv_heads)?;
        let blocks = gpu.multiprocessors() * resident(kernel, shared_bytes)?;
        let slots = match split {
            Split::Even => 2 * blocks,
            Split::Every(tokens) => (limits.tokens / tokens + limits.sequences) * shape.kv_heads,
        };
        Ok(Self {
            kernel,
            shape,
            heads,
            split,
            limits,
            grid: Grid { shared_bytes, ..Grid::line(blocks, 32 * WARPS) },
            slots,
            // Values, a maximum and a sum.
            partial: gpu.unset(slots * heads / shape.kv_heads * (shape.head_dim + 2))?,
            arrived: gpu.zeros(limits.sequences * shape.kv_heads)?,
        })
    }

    /// A place for shares of layers with this window; [`Self::plan`] fills it.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn shares(&self, gpu: &Gpu, window: Option<usize>) -> Result<Shares, GpuError> {
        Ok(Shares { window, schedule: gpu.zeros(START_INTS * (1 + self.grid.blocks[0]))? })
    }

    /// Cuts a step's work: once a step, before the first layer. `kv_len` counts the new
    /// token of each sequence; 0 is a place without a sequence.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn plan(
        &self,
        gpu: &Gpu,
        kv_len: &impl Read<i32>,
        max_pages: usize,
        shares: &mut Shares,
    ) -> Result<(), GpuError> {
        at_least(OP, "most sequences", self.limits.sequences, kv_len.len())?;
        let sequences = kv_len.len();
        let args = gpu.args().read(kv_len).int(sequences).int(max_pages * self.shape.page_tokens);
        let args = args.int(self.shape.kv_heads).int(self.fixed_unit()).int(shares.window.unwrap_or(0));
        let args = args.int(self.grid.blocks[0]).write(&mut shares.schedule);
        let kernel = gpu.kernel("attention_schedule", "attention_schedule")?;
        // SAFETY: the schedule has room for as many blocks; sequences are not too many.
        unsafe { kernel.launch(Grid::line(1, 1024), args, gpu.overlaps()) }
    }

    /// `out[sequence] = softmax(q[sequence] * K * scale) * V` by head, over all `kv_len` positions
    /// of the sequence, for the `kv_len` that `shares` was planned with. `q` and `out` are rows
    /// that begin with `[head][head_dim]`; a row without a sequence is not written.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(
        &mut self,
        gpu: &Gpu,
        attention: &Attention,
        inputs: &Inputs<'_, impl Read<Half>, impl Read<i32>>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        let Inputs { q, pages, kv_len, shares } = inputs;
        attention.check(pages)?;
        let sequences = kv_len.len();
        at_least(OP, "most sequences", self.limits.sequences, sequences)?;
        exactly(OP, "sequences of the page table", pages.table.len() / pages.max_pages, sequences)?;
        exactly(OP, "query heads", attention.heads, self.heads)?;
        exactly(OP, "window", attention.window.unwrap_or(0), shares.window.unwrap_or(0))?;
        exactly(OP, "head size", pages.shape.head_dim, self.shape.head_dim)?;
        exactly(OP, "key/value heads", pages.shape.kv_heads, self.shape.kv_heads)?;
        exactly(OP, "page size", pages.shape.page_tokens, self.shape.page_tokens)?;
        exactly(OP, "halves of a row", pages.shape.row_halves(), self.shape.row_halves())?;
        let head_dim = self.shape.head_dim;
        let q_stride = attention.stride("queries", q.len(), sequences, head_dim)?;
        let out_stride = attention.stride("output", out.len(), sequences, head_dim)?;
        let parameter = Parameter {
            q: address(gpu, *q),
            out: address_mut(gpu, out),
            pool: address(gpu, &pages.pool),
            page_table: address(gpu, &pages.table),
            kv_len: address(gpu, *kv_len),
            schedule: address(gpu, &shares.schedule),
            q_stride: whole(q_stride),
            out_stride: whole(out_stride),
            ..self.parameter(gpu, attention, pages)
        };
        let args = gpu.args().record(bytemuck::cast_slice(std::slice::from_ref(&parameter)));
        // SAFETY: shapes are checked above; page numbers and lengths are checked in the kernel.
        unsafe { self.kernel.launch(self.grid, args, gpu.overlaps()) }
    }

    /// All but what differs from step to step.
    fn parameter(&mut self, gpu: &Gpu, attention: &Attention, pages: &Paged<'_>) -> Parameter {
        let shape = pages.shape;
        Parameter {
            partial: address_mut(gpu, &mut self.partial),
            arrived: address_mut(gpu, &mut self.arrived),
            page_stride: shape.page_halves() as i64,
            layer_offset: (attention.layer * shape.page_tokens * shape.row_halves()) as i64,
            slots: self.slots as i64,
            heads: whole(attention.heads),
            kv_heads: whole(shape.kv_heads),
            pages: whole(shape.pages),
            page_tokens: whole(shape.page_tokens),
            max_pages: whole(pages.max_pages),
            window: whole(attention.window.unwrap_or(0)),
            scale: attention.scale,
            cap: attention.cap.unwrap_or(0.0),
            ..Parameter::zeroed()
        }
    }

    /// Tokens between cuts; 0 for any.
    fn fixed_unit(&self) -> usize {
        match self.split {
            Split::Even => 0,
            Split::Every(tokens) => tokens,
        }
    }
}

/// What [`Decode::run`] reads.
#[derive(Debug)]
pub struct Inputs<'a, Q, L> {
    /// Rows of queries.
    pub q: &'a Q,
    /// Keys and values.
    pub pages: &'a Paged<'a>,
    /// Lengths of sequences.
    pub kv_len: &'a L,
    /// Planned with the same lengths.
    pub shares: &'a Shares,
}

/// The kernel for a shape with the most stages whose shared memory the card has.
fn choose(gpu: &Gpu, shape: &PoolShape, group: usize) -> Result<(Kernel, usize), GpuError> {
    let most = gpu.context().attribute(MOST_SHARED).named("cuDeviceGetAttribute")? as usize;
    let eights = group.div_ceil(8);
    let variants: &[(usize, [&'static str; 2])] = match (shape.form, shape.head_dim) {
        (KvForm::Plain, 64) => &[(3, ["attention_decode_d64_q1_s3", "attention_decode_d64_q2_s3"])],
        (KvForm::Plain, 96) => &[(2, ["attention_decode_d96_q1_s2", "attention_decode_d96_q2_s2"])],
        (KvForm::Plain, 128) => &[
            (3, ["attention_decode_d128_q1_s3", "attention_decode_d128_q2_s3"]),
            (2, ["attention_decode_d128_q1_s2", "attention_decode_d128_q2_s2"]),
        ],
        (KvForm::Plain, 256) => &[(2, ["attention_decode_d256_q1_s2", "attention_decode_d256_q2_s2"])],
        (KvForm::Fp8, 64) => &[(2, ["attention_decode_fp8_d64_q1_s2", "attention_decode_fp8_d64_q2_s2"])],
        (KvForm::Fp8, 96) => &[(2, ["attention_decode_fp8_d96_q1_s2", "attention_decode_fp8_d96_q2_s2"])],
        (KvForm::Fp8, 128) => &[(2, ["attention_decode_fp8_d128_q1_s2", "attention_decode_fp8_d128_q2_s2"])],
        (KvForm::Fp8, 256) => &[(2, ["attention_decode_fp8_d256_q1_s2", "attention_decode_fp8_d256_q2_s2"])],
        (_, found) => return Err(GpuError::Shape { op: OP, what: "head size", found, needed: 128 }),
    };
    let mut needed = 0;
    for (stages, names) in variants {
        needed = shared_bytes(shape, 8 * eights, *stages);
        if needed <= most {
            return Ok((gpu.kernel(IMAGE, names[eights - 1])?, needed));
        }
    }
    Err(GpuError::Shape { op: OP, what: "shared memory of a block", found: most, needed })
}

/// Size of the kernel's `Shared`.
fn shared_bytes(shape: &PoolShape, queries: usize, stages: usize) -> usize {
    let head_dim = shape.head_dim;
    // Rows are whole lines of 128 bytes.
    let token_bytes = match shape.form {
        KvForm::Plain => 2 * (2 * head_dim).next_multiple_of(128),
        KvForm::Fp8 => 2 * (head_dim.next_multiple_of(128) + 4),
    };
    let ring = WARPS * stages * TILE * token_bytes;
    let sums = WARPS * queries * (head_dim + 4 + 2) * 4;
    ring + sums + 4
}

/// How many blocks a multiprocessor runs at once.
fn resident(kernel: Kernel, shared_bytes: usize) -> Result<usize, GpuError> {
    let mut blocks = 0;
    // SAFETY: a loaded function, and a place for one int.
    unsafe {
        sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &raw mut blocks,
            kernel.function,
            (32 * WARPS) as i32,
            shared_bytes,
        )
    }
    .result()
    .named("cuOccupancyMaxActiveBlocksPerMultiprocessor")?;
    Ok(blocks.max(1) as usize)
}
