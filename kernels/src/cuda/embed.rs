//! Rows of the embedding.
#![expect(unsafe_code, reason = "launches kernels")]

use cudarc::driver::CudaView;

use super::{
    Gpu, Half, Weights, Write,
    error::{GpuError, exactly, multiple},
    launch::Grid,
};

const OP: &str = "embed";

/// Tokens of rows.
#[derive(Debug)]
pub struct Tokens<'a> {
    /// Of each row; a negative one, `-1 - i`, stands for `drawn[i]`.
    pub rows: CudaView<'a, i32>,
    /// What earlier steps drew, and the host may not have seen yet.
    pub drawn: Option<CudaView<'a, i32>>,
}

/// `out[row] = table[tokens[row]] * scale`, for each row of `out`. Tokens on
/// the device cannot be checked here: one that is none takes row 0.
///
/// # Errors
/// When shapes do not fit.
pub fn embed(
    gpu: &Gpu,
    table: &Weights<'_>,
    tokens: &Tokens<'_>,
    scale: f32,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    let (hidden, rows) = (table.inputs, tokens.rows.len());
    multiple(OP, "hidden size", hidden, 8)?;
    exactly(OP, "elements of the table", table.data.len(), table.outputs * hidden)?;
    exactly(OP, "elements out", out.len(), rows * hidden)?;
    if rows == 0 {
        return Ok(());
    }
    let drawn_tokens = tokens.drawn.as_ref().map_or(0, CudaView::len);
    let args = gpu.args().read(&table.data).read(&tokens.rows).read_or_null(tokens.drawn.as_ref());
    let args = args.int(drawn_tokens).write(out).int(hidden).int(table.outputs).float(scale);
    let grid = Grid::line(rows, (hidden / 8).next_multiple_of(32).min(512));
    // SAFETY: shapes are checked above; tokens are checked in the kernel.
    unsafe { gpu.kernel(OP, "embed")?.launch(grid, args, gpu.overlaps()) }
}
