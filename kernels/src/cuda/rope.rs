//! Rotary embedding, and keys and values into pages.
#![expect(unsafe_code, reason = "launches kernels")]

use cudarc::driver::CudaView;

use super::{
    Gpu, Half, Write,
    error::{GpuError, at_least, exactly, multiple},
    launch::Grid,
};

const OP: &str = "rope";

/// What the rows of a pool consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvForm {
    /// Elements as the card computes: `[K|V][kv_head][head_dim]`.
    #[default]
    Plain,
    /// As many e4m3, then their scales in f32: `[K|V][kv_head]`.
    Fp8,
}

/// Layout of a pool of pages on a card: page `p`, layer `l`, token `t` is a row
/// at `((p * layers + l) * page_tokens + t)` rows from the start. Its memory is counted in
/// [`Half`]s, whatever rows consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// What a row is.
    pub form: KvForm,
    /// How many pages.
    pub pages: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Heads of keys, and of values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Where rows stand in their sequences and in the pool.
#[derive(Debug)]
pub struct Places<'a> {
    /// Position of each row.
    pub positions: CudaView<'a, i32>,
    /// `page * page_tokens + token` of each row; negative: the row's keys and values are dropped.
    pub slots: CudaView<'a, i32>,
}

/// A rotary embedding and the shape it is used on.
#[derive(Debug)]
pub struct Rope<'a> {
    /// Radians for each position, for each pair of elements `i` and `i + frequencies.len()` of
    /// a head; a multiple of 8 of them, none to turn nothing.
    pub frequencies: CudaView<'a, f32>,
    /// Factor of cosines and sines.
    pub magnitude: f32,
    /// Query heads.
    pub heads: usize,
    /// The layer whose keys and values are written.
    pub layer: usize,
    /// The pool.
    pub pool: PoolShape,
}

// === impl PoolShape ===

impl PoolShape {
    /// Size of the keys and values of one token in one layer.
    #[must_use]
    pub fn row_halves(&self) -> usize {
        match self.form {
            KvForm::Plain => 2 * self.kv_heads * self.head_dim,
            KvForm::Fp8 => self.kv_heads * (self.head_dim + 4),
        }
    }

    /// Size of a page.
    #[must_use]
    pub fn page_halves(&self) -> usize {
        self.layers * self.page_tokens * self.row_halves()
    }
}

// === impl Rope ===

impl Rope<'_> {
    /// Turns queries in place and writes turned keys, and values to the pages; to those in fp8
    /// each head's key and value as [`crate::reference::quantised`] rounds them.
    /// `qkv` is `[row][heads + 2 * kv_heads][head_dim]`; its keys and values stay as they are.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn write(
        &self,
        gpu: &Gpu,
        places: &Places<'_>,
        qkv: &mut impl Write<Half>,
        pages: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        let (rows, pool) = (places.positions.len(), &self.pool);
        let turning = 2 * self.frequencies.len();
        at_least(OP, "head size", pool.head_dim, turning)?;
        multiple(OP, "head size", pool.head_dim, 8)?;
        multiple(OP, "turning elements of a head", turning + 16, 16)?;
        exactly(OP, "slots", places.slots.len(), rows)?;
        exactly(OP, "elements", qkv.len(), rows * (self.heads + 2 * pool.kv_heads) * pool.head_dim)?;
        exactly(OP, "halves of the pool", pages.len(), pool.pages * pool.page_halves())?;
        at_least(OP, "layers", pool.layers, self.layer + 1)?;
        if rows == 0 {
            return Ok(());
        }
        let args =
            gpu.args().write(qkv).read(&places.positions).read(&self.frequencies).float(self.magnitude);
        let args = args.read(&places.slots).write(pages).int(pool.pages * pool.page_tokens);
        let args = args.int(pool.page_tokens).int(pool.layers).int(self.layer);
        let args = args.int(self.heads).int(pool.kv_heads).int(pool.head_dim).int(turning);
        let grid = Grid { shared_bytes: 4 * turning, ..Grid::line(rows, 256) };
        let function = match pool.form {
            KvForm::Plain => "rope_write",
            KvForm::Fp8 => {
                at_least(OP, "widest head", 256, pool.head_dim)?;
                "rope_write_fp8"
            }
        };
        // SAFETY: shapes are checked above; slots are checked in the kernel.
        unsafe { gpu.kernel(OP, function)?.launch(grid, args, gpu.overlaps()) }
    }
}
