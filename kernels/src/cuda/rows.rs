//! Rows of matrices: chosen ones, and what is done to each.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{
    Gpu, Half, Read, Write,
    error::{GpuError, exactly, multiple},
    launch::Grid,
};

const OP: &str = "rows";

/// `out[i] = x[which[i]]`, rows being `width` long. Indices on the device cannot
/// be checked here: one that is none takes row 0.
///
/// # Errors
/// When shapes do not fit.
pub fn gather(
    gpu: &Gpu,
    width: usize,
    x: &impl Read<Half>,
    which: &impl Read<i32>,
    out: &mut impl Write<Half>,
) -> Result<(), GpuError> {
    multiple(OP, "width", width, 8)?;
    multiple(OP, "elements in", x.len(), width)?;
    exactly(OP, "elements out", out.len(), which.len() * width)?;
    if out.is_empty() {
        return Ok(());
    }
    let args = gpu.args().read(x).read(which).write(out).int(width).int(x.len() / width);
    let grid = Grid::line(which.len(), (width / 8).next_multiple_of(32).min(512));
    // SAFETY: shapes are checked above; indices are checked in the kernel.
    unsafe { gpu.kernel(OP, "gather_rows")?.launch(grid, args, gpu.overlaps()) }
}

/// `x[row] += bias`
///
/// # Errors
/// When shapes do not fit.
pub fn add_bias(gpu: &Gpu, bias: &impl Read<Half>, x: &mut impl Write<Half>) -> Result<(), GpuError> {
    let width = bias.len();
    multiple(OP, "width", width, 8)?;
    if x.is_empty() {
        return Ok(());
    }
    multiple(OP, "elements", x.len(), width)?;
    let grid = Grid::line(x.len() / width, (width / 8).next_multiple_of(32).min(512));
    let args = gpu.args().write(x).read(bias).int(width);
    // SAFETY: shapes are checked above.
    unsafe { gpu.kernel(OP, "add_bias")?.launch(grid, args, gpu.overlaps()) }
}

/// `x = cap * tanh(x / cap)`
///
/// # Errors
/// When the launch fails.
pub fn softcap(gpu: &Gpu, cap: f32, x: &mut impl Write<f32>) -> Result<(), GpuError> {
    if x.is_empty() {
        return Ok(());
    }
    let elements = x.len();
    let args = gpu.args().write(x).float(cap).long(elements as u64);
    // SAFETY: the kernel is told how many elements there are.
    unsafe {
        gpu.kernel(OP, "softcap")?.launch(Grid::line(elements.div_ceil(256), 256), args, gpu.overlaps())
    }
}
