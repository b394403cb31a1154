//! Cached rows of eight bits as elements.
#![expect(unsafe_code, reason = "launches a kernel")]

use super::Paged;
use crate::cuda::{
    Gpu, GpuError, Half, Read, Write,
    error::{at_least, exactly, multiple},
    launch::Grid,
    rope::{KvForm, PoolShape},
};

const OP: &str = "unpack";

/// Tokens of a block, as in the kernel.
const BLOCK: usize = 16;

/// The pool that [`unpack`] writes for so many table entries: one layer of elements.
#[must_use]
pub fn unpacked(shape: PoolShape, entries: usize) -> PoolShape {
    PoolShape { form: KvForm::Plain, pages: entries, layers: 1, ..shape }
}

/// Writes rows of one layer of fp8 `pages` as elements, rounded as [`prefill`](super::prefill)
/// rounds them: page `j` of sequence `s` to page `s * pages.max_pages + j` of `out`, a pool of
/// shape [`unpacked`] with a page for each entry of the table. Of each sequence the first
/// `lengths` tokens are written.
///
/// # Errors
/// When shapes do not fit, or the pages are not in fp8.
pub fn unpack(
    gpu: &Gpu,
    (pages, layer): (&Paged<'_>, usize),
    lengths: &impl Read<i32>,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    let shape = pages.shape;
    if shape.form != KvForm::Fp8 {
        return Err(GpuError::NoKernel { image: OP, function: "for pages of elements" });
    }
    let entries = pages.table.len();
    multiple(OP, "page size", shape.page_tokens, BLOCK)?;
    multiple(OP, "head size", shape.head_dim, 8)?;
    exactly(OP, "page table", entries, lengths.len() * pages.max_pages)?;
    exactly(OP, "halves of the pool", pages.pool.len(), shape.pages * shape.page_halves())?;
    at_least(OP, "layers", shape.layers, layer + 1)?;
    exactly(OP, "elements out", out.len(), entries * unpacked(shape, entries).page_halves())?;
    if entries == 0 {
        return Ok(());
    }
    let layer = pages.pool.slice(layer * shape.page_tokens * shape.row_halves()..);
    let args = gpu.args().read(&layer).read(&pages.table).read(lengths).write(out);
    let args = args.int(pages.max_pages).int(shape.pages).long(2 * shape.page_halves() as u64);
    let args = args.int(shape.page_tokens).int(shape.kv_heads).int(shape.head_dim);
    let grid = Grid::line(entries * (shape.page_tokens / BLOCK), 256);
    // SAFETY: shapes are checked above, page numbers in the kernel.
    unsafe { gpu.kernel(OP, "unpack_kv")?.launch(grid, args, gpu.overlaps()) }
}
