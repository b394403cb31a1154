//! Attention of many new tokens per sequence.
#![expect(unsafe_code, reason = "launches kernels")]

use bytemuck::{Pod, Zeroable};

use super::{
    Attention, OP, Paged, address, address_mut,
    tensor_map::{box_tokens, tensor_map},
    whole,
};
use crate::cuda::{
    Gpu, Half, Read, Write,
    error::{GpuError, multiple},
    launch::Grid,
    rope::{KvForm, PoolShape},
    tensor_map::TensorMap,
};

/// As in the kernels: rows of a tile.
const TILE_ROWS: usize = 128;

/// Ints of a tile.
const TILE_INTS: usize = 4;

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Row of the page table.
    pub sequence: usize,
    /// Their first row in `q` and `out`.
    pub first_row: usize,
    /// How many there are.
    pub rows: usize,
    /// Position of the first.
    pub start: usize,
}

/// The kernels' parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Parameter {
    q: u64,
    out: u64,
    pool: u64,
    page_table: u64,
    tiles: u64,
    page_stride: i64,
    layer_offset: i64,
    tile_count: i32,
    layer: i32,
    layers: i32,
    q_stride: i32,
    out_stride: i32,
    heads: i32,
    kv_heads: i32,
    pages: i32,
    page_tokens: i32,
    max_pages: i32,
    sequences: i32,
    rows: i32,
    box_tokens: i32,
    window: i32,
    scale: f32,
    cap: f32,
}

// === impl Parameter ===

impl Parameter {
    fn words(&self) -> &[u64] {
        bytemuck::cast_slice(std::slice::from_ref(self))
    }
}

/// The tiles of a step's chunks, as [`prefill`] reads them from device memory; the
/// longest first, so that the card is not left waiting for one of them.
#[must_use]
pub fn row_tiles(chunks: &[Chunk]) -> Vec<i32> {
    let mut tiles = Vec::new();
    for chunk in chunks {
        for row in (0..chunk.rows).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(chunk.rows - row);
            tiles.push([chunk.sequence, chunk.first_row + row, rows, chunk.start + row].map(whole));
        }
    }
    tiles.sort_by_key(|[_, _, rows, start]| std::cmp::Reverse(rows + start));
    tiles.into_flattened()
}

/// `out[row] = softmax(q[row] * K * scale) * V` by head, over the row's sequence up to its
/// position. `q` and `out` are `rows` rows that begin with `[head][head_dim]`; rows in no tile
/// are not written. A row's bits depend on its own sequence alone, however it is chunked.
///
/// # Errors
/// When shapes do not fit.
pub fn prefill(
    gpu: &Gpu,
    attention: &Attention,
    rows: &Rows<'_, impl Read<Half>, impl Read<i32>>,
    pages: &Paged<'_>,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    let Some(parameter) = parameter(gpu, attention, rows, pages, out)? else { return Ok(()) };
    match on_hopper(gpu, &pages.shape, parameter.cap) {
        Some(name) => launch_on_hopper(gpu, name, pages, &parameter),
        None => launch(gpu, &pages.shape, &parameter),
    }
}

/// As [`prefill`], by the kernel that runs on any card since compute capability 8.0: to
/// compare with.
///
/// # Errors
/// When shapes do not fit.
pub fn prefill_on_any_card(
    gpu: &Gpu,
    attention: &Attention,
    rows: &Rows<'_, impl Read<Half>, impl Read<i32>>,
    pages: &Paged<'_>,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    let Some(parameter) = parameter(gpu, attention, rows, pages, out)? else { return Ok(()) };
    launch(gpu, &pages.shape, &parameter)
}

/// Nothing if there is nothing to do.
fn parameter(
    gpu: &Gpu,
    attention: &Attention,
    rows: &Rows<'_, impl Read<Half>, impl Read<i32>>,
    pages: &Paged<'_>,
    out: &mut impl Write<Half>,
) -> Result<Option<Parameter>, GpuError> {
    attention.check(pages)?;
    if rows.tiles.is_empty() {
        return Ok(None);
    }
    multiple(OP, "tiles", rows.tiles.len(), TILE_INTS)?;
    let shape = pages.shape;
    Ok(Some(Parameter {
        q: address(gpu, rows.q),
        out: address_mut(gpu, out),
        pool: address(gpu, &pages.pool),
        page_table: address(gpu, &pages.table),
        tiles: address(gpu, rows.tiles),
        page_stride: shape.page_halves() as i64,
        layer_offset: (attention.layer * shape.page_tokens * shape.row_halves()) as i64,
        tile_count: whole(rows.tiles.len() / TILE_INTS),
        layer: whole(attention.layer),
        layers: whole(shape.layers),
        q_stride: whole(attention.stride("queries", rows.q.len(), rows.rows, shape.head_dim)?),
        out_stride: whole(attention.stride("output", out.len(), rows.rows, shape.head_dim)?),
        heads: whole(attention.heads),
        kv_heads: whole(shape.kv_heads),
        pages: whole(shape.pages),
        page_tokens: whole(shape.page_tokens),
        max_pages: whole(pages.max_pages),
        sequences: whole(pages.table.len() / pages.max_pages),
        rows: whole(rows.rows),
        box_tokens: whole(box_tokens(&shape)),
        window: whole(attention.window.unwrap_or(0)),
        scale: attention.scale,
        cap: attention.cap.unwrap_or(0.0),
    }))
}

/// Rows of new tokens.
#[derive(Debug)]
pub struct Rows<'a, Q, T> {
    /// Queries.
    pub q: &'a Q,
    /// How many rows `q` and the output have.
    pub rows: usize,
    /// [`row_tiles`] of them.
    pub tiles: &'a T,
}

fn launch_on_hopper(
    gpu: &Gpu,
    name: &'static str,
    pages: &Paged<'_>,
    parameter: &Parameter,
) -> Result<(), GpuError> {
    let map = match pages.shape.form {
        KvForm::Plain => tensor_map(gpu.dtype(), parameter.pool, &pages.shape)?,
        // The copy engine is not used.
        KvForm::Fp8 => TensorMap::default(),
    };
    // Queries, output, two stages of 128 keys and values; barriers and room to align.
    let shared_bytes = 2 * pages.shape.head_dim * (2 * TILE_ROWS + 2 * 2 * 128) + 2048;
    let items = (parameter.tile_count * parameter.heads) as usize;
    let grid = Grid { shared_bytes, ..Grid::line(items.min(gpu.multiprocessors()), 384) };
    let args = gpu.args().record(&map).record(parameter.words());
    // SAFETY: shapes are checked by the caller; tiles and page numbers in the kernel.
    unsafe { gpu.kernel("attention_prefill_hopper", name)?.launch(grid, args, gpu.overlaps()) }
}

fn launch(gpu: &Gpu, shape: &PoolShape, parameter: &Parameter) -> Result<(), GpuError> {
    let head_dim = shape.head_dim;
    // Keys of a tile, and threads.
    let (plain, fp8, keys, threads) = match head_dim {
        64 => ("attention_prefill_d64", "attention_prefill_fp8_d64", 64, 128),
        96 => ("attention_prefill_d96", "attention_prefill_fp8_d96", 64, 128),
        128 => ("attention_prefill_d128", "attention_prefill_fp8_d128", 64, 128),
        256 => ("attention_prefill_d256", "attention_prefill_fp8_d256", 32, 256),
        found => return Err(GpuError::Shape { op: OP, what: "head size", found, needed: 128 }),
    };
    let name = if shape.form == KvForm::Fp8 { fp8 } else { plain };
    let shared_bytes = 2 * head_dim.next_multiple_of(64) * (TILE_ROWS + 2 * keys);
    let blocks = [parameter.heads as usize, parameter.tile_count as usize, 1];
    let grid = Grid { blocks, threads, shared_bytes, cluster: 1 };
    let args = gpu.args().record(parameter.words());
    // SAFETY: as in `launch_on_hopper`.
    unsafe { gpu.kernel("attention_prefill", name)?.launch(grid, args, gpu.overlaps()) }
}

/// The kernel made for Hopper, where there is one.
fn on_hopper(gpu: &Gpu, shape: &PoolShape, cap: f32) -> Option<&'static str> {
    if gpu.capability().0 != 9 {
        return None;
    }
    match (shape.head_dim, shape.form, cap > 0.0) {
        (64, KvForm::Plain, false) => Some("attention_prefill_hopper_d64"),
        (64, KvForm::Plain, true) => Some("attention_prefill_hopper_d64_capped"),
        (64, KvForm::Fp8, false) => Some("attention_prefill_hopper_fp8_d64"),
        (64, KvForm::Fp8, true) => Some("attention_prefill_hopper_fp8_d64_capped"),
        (128, KvForm::Plain, false) => Some("attention_prefill_hopper_d128"),
        (128, KvForm::Plain, true) => Some("attention_prefill_hopper_d128_capped"),
        (128, KvForm::Fp8, false) => Some("attention_prefill_hopper_fp8_d128"),
        (128, KvForm::Fp8, true) => Some("attention_prefill_hopper_fp8_d128_capped"),
        _ => None,
    }
}
