//! Paged causal attention with grouped queries.
//!
//! - [`Decode`]: one new token per sequence, cut over the card by [`Shares`].
//! - [`prefill`]: many new tokens per sequence, in tiles of rows.
//!
//! - [`unpack`]: pages in e4m3 as pages of elements, for prompts.
//!
//! A step with both is two launches over disjoint rows. Both read keys and values from
//! the pages, where the new tokens' own rows must be already: as elements, or in e4m3, of which
//! they make elements as they go.

mod decode;
mod prefill;
mod tensor_map;
mod unpack;

use cudarc::driver::CudaView;

pub use decode::{Decode, Inputs, Limits, Shares, Split};
pub use prefill::{Chunk, Rows, prefill, prefill_on_any_card, row_tiles};
pub use unpack::{unpack, unpacked};

use super::{
    Gpu, Half,
    error::{GpuError, at_least, exactly, multiple},
    rope::PoolShape,
};

const OP: &str = "attention";

/// The attention of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads: a multiple of the pool's key/value heads.
    pub heads: usize,
    /// Factor of scores.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// How many positions a token sees, itself counted.
    pub window: Option<usize>,
    /// Which layer of the pool.
    pub layer: usize,
}

/// Keys and values of sequences.
#[derive(Debug)]
pub struct Paged<'a> {
    /// Shape of the pool.
    pub shape: PoolShape,
    /// The pool.
    pub pool: CudaView<'a, Half>,
    /// Pages of each sequence in order, `[sequence][max_pages]`. What is beyond a
    /// sequence's length is not looked at.
    pub table: CudaView<'a, i32>,
    /// Width of the table.
    pub max_pages: usize,
}

// === impl Attention ===

impl Attention {
    fn check(&self, pages: &Paged<'_>) -> Result<(), GpuError> {
        let shape = &pages.shape;
        multiple(OP, "query heads", self.heads, shape.kv_heads)?;
        multiple(OP, "page size", shape.page_tokens, 16)?;
        multiple(OP, "page table", pages.table.len(), pages.max_pages)?;
        exactly(OP, "halves of the pool", pages.pool.len(), shape.pages * shape.page_halves())?;
        at_least(OP, "layers", shape.layers, self.layer + 1)
    }

    /// Width of rows that begin with `heads` heads: of queries alone, or with keys and values.
    fn stride(
        &self,
        what: &'static str,
        elements: usize,
        rows: usize,
        head_dim: usize,
    ) -> Result<usize, GpuError> {
        multiple(OP, what, elements, rows)?;
        at_least(OP, what, elements / rows, self.heads * head_dim)?;
        multiple(OP, what, elements / rows, 8)?;
        Ok(elements / rows)
    }
}

fn whole(value: usize) -> i32 {
    value as i32
}

/// Raw address of memory used on the card's own stream.
fn address<T>(gpu: &Gpu, memory: &impl super::Read<T>) -> u64 {
    memory.device_ptr(gpu.stream()).0
}

fn address_mut<T>(gpu: &Gpu, memory: &mut impl super::Write<T>) -> u64 {
    memory.device_ptr_mut(gpu.stream()).0
}
