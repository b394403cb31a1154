//! Made-up weights.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{Gpu, Half, Write, error::GpuError, launch::Grid};

/// Fills `out` with numbers from `[-scale, scale)`, a function of `seed` and the place alone.
///
/// # Errors
/// When the launch fails.
pub fn fill_uniform(gpu: &Gpu, seed: u64, scale: f32, out: &mut impl Write<Half>) -> Result<(), GpuError> {
    if out.is_empty() {
        return Ok(());
    }
    let elements = out.len();
    let blocks = elements.div_ceil(256).min(16 * gpu.multiprocessors());
    let args = gpu.args().write(out).long(elements as u64).long(seed).float(scale);
    // SAFETY: the kernel is told how many elements there are.
    unsafe { gpu.kernel("random", "fill_uniform")?.launch(Grid::line(blocks, 256), args, gpu.overlaps()) }
}
