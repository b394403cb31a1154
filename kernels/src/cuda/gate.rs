//! The gate of a feed-forward part.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{
    Gpu, Half, Read, Write,
    error::{GpuError, exactly, multiple},
    launch::Grid,
};

const OP: &str = "gate";

/// Nonlinearity of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// `out[row][i] = activation(x[row][i]) * x[row][width + i]`, rows of `x` being `2 * width` long.
///
/// # Errors
/// When shapes do not fit.
pub fn gate(
    gpu: &Gpu,
    activation: Activation,
    width: usize,
    x: &impl Read<Half>,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    multiple(OP, "width", width, 8)?;
    exactly(OP, "elements in", x.len(), 2 * out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    multiple(OP, "elements out", out.len(), width)?;
    let threads = (width / 8).next_multiple_of(32).min(256);
    let row_blocks = width.div_ceil(8 * threads);
    let function = match activation {
        Activation::Silu => "gate_silu",
        Activation::GeluTanh => "gate_gelu",
    };
    let args = gpu.args().read(x).write(out).int(width).int(row_blocks);
    let grid = Grid::line(out.len() / width * row_blocks, threads);
    // SAFETY: shapes are checked above.
    unsafe { gpu.kernel(OP, function)?.launch(grid, args, gpu.overlaps()) }
}
