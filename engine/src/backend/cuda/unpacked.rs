//! Cached rows in fp8 as elements, for the attention of prompts.

use baton_kernels::cuda::{
    Gpu, GpuError, Half, Read,
    attention::{self, Paged},
    cudarc::driver::CudaSlice,
    rope::PoolShape,
};

/// Tokens that are unpacked at once, at most: 128 MiB with the rows of Llama 3.1 8B.
const MAX_TOKENS: usize = 32 << 10;

/// One layer of the pages of a step's chunks.
pub(super) struct Unpacked {
    pages: CudaSlice<Half>,
    /// Page `i` is the `i`-th.
    table: CudaSlice<i32>,
}

// === impl Unpacked ===

impl Unpacked {
    /// Room for a sequence of `context_tokens`, or for [`MAX_TOKENS`].
    pub fn new(gpu: &Gpu, shape: PoolShape, context_tokens: usize) -> Result<Self, GpuError> {
        let tokens = context_tokens.next_power_of_two().min(MAX_TOKENS);
        let entries = tokens.div_ceil(shape.page_tokens);
        let numbers: Vec<i32> = (0..entries as i32).collect();
        let pages = gpu.zeros(attention::unpacked(shape, entries).page_halves() * entries)?;
        Ok(Self { pages, table: gpu.upload(&numbers)? })
    }

    /// Layer `layer` of `cached`, of each sequence as many tokens as `lengths` says, in layer 0 of
    /// other pages; none if there is no room for all of them.
    pub fn of(
        &mut self,
        gpu: &Gpu,
        (cached, layer): (&Paged<'_>, usize),
        lengths: &impl Read<i32>,
    ) -> Result<Option<Paged<'_>>, GpuError> {
        let entries = cached.table.len();
        if entries > self.table.len() {
            return Ok(None);
        }
        let shape = attention::unpacked(cached.shape, entries);
        let halves = entries * shape.page_halves();
        attention::unpack(gpu, (cached, layer), lengths, &mut self.pages.slice_mut(..halves))?;
        let (pool, table) = (self.pages.slice(..halves), self.table.slice(..entries));
        Ok(Some(Paged { shape, pool, table, max_pages: cached.max_pages }))
    }
}
