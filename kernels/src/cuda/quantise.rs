//! Rows in e4m3, each with a scale.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{
    Gpu, Half, Read, ScaledMut,
    error::{GpuError, at_least, exactly, multiple},
    launch::Grid,
    norm::Norm,
};

const OP: &str = "quantise";

/// Elements that the threads of one block hold.
const MAX_WIDTH: usize = 1024 * 4 * 8;

/// The scale of a row is its greatest element over 448, the greatest e4m3; elements over the
/// scale are rounded to the nearest, as [`crate::reference::quantised`] does.
///
/// # Errors
/// When shapes do not fit.
pub fn quantise(gpu: &Gpu, x: &impl Read<Half>, out: &mut ScaledMut<'_>) -> Result<(), GpuError> {
    let Some(grid) = grid(x.len(), out)? else { return Ok(()) };
    let args = gpu.args().read(x).write(&mut out.data).write(&mut out.scales).int(out.width);
    // SAFETY: shapes are checked by `grid`.
    unsafe { gpu.kernel(OP, "quantise_rows")?.launch(grid, args, gpu.overlaps()) }
}

/// [`quantise`] of what [`Norm::run`] makes of `x`.
///
/// # Errors
/// When shapes do not fit.
pub fn quantise_norm(
    gpu: &Gpu,
    norm: &Norm<'_>,
    x: &impl Read<Half>,
    out: &mut ScaledMut<'_>,
) -> Result<(), GpuError> {
    exactly(OP, "weights of the norm", norm.weight.len(), out.width)?;
    let Some(grid) = grid(x.len(), out)? else { return Ok(()) };
    let args = gpu.args().read(x).read(&norm.weight).write(&mut out.data).write(&mut out.scales);
    let args = args.int(out.width).float(norm.eps);
    // SAFETY: shapes are checked above and by `grid`.
    unsafe { gpu.kernel(OP, "quantise_norm")?.launch(grid, args, gpu.overlaps()) }
}

/// The grid for `elements`, if there are any.
fn grid(elements: usize, out: &ScaledMut<'_>) -> Result<Option<Grid>, GpuError> {
    let (width, rows) = (out.width, out.rows());
    multiple(OP, "width", width, 8)?;
    at_least(OP, "widest row", MAX_WIDTH, width)?;
    exactly(OP, "elements in", elements, rows * width)?;
    exactly(OP, "elements out", out.data.len(), rows * width)?;
    // Enough threads to hold the row; more than it needs would only wait.
    let threads = (width / 8).next_multiple_of(32);
    let threads = if threads <= 512 { threads } else { threads.div_ceil(4).next_multiple_of(32).max(512) };
    Ok((rows > 0).then(|| Grid::line(rows, threads.min(1024))))
}
