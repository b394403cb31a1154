//! The likeliest token of each row.
#![expect(unsafe_code, reason = "launches kernels")]

use half::bf16;

use super::{
    Gpu, Read, Write,
    error::{GpuError, exactly},
    launch::Grid,
};

const OP: &str = "argmax";

/// What logits, and other outputs of products, may be.
pub trait Logit: cudarc::driver::DeviceRepr {
    /// Name of the type in names of kernels.
    const NAME: &str;
    /// Kernel of [`argmax`].
    const ARGMAX: &str;
}

impl Logit for bf16 {
    const NAME: &str = "bf16";
    const ARGMAX: &str = "argmax_bf16";
}

impl Logit for f32 {
    const NAME: &str = "f32";
    const ARGMAX: &str = "argmax_f32";
}

/// `tokens[row]` = the lowest id of the greatest of `logits[row]`, which are
/// `logits.len() / tokens.len()` each. NaN is never chosen; a row without any
/// usable logit gives -1.
///
/// # Errors
/// When shapes do not fit.
pub fn argmax<T: Logit>(
    gpu: &Gpu,
    logits: &impl Read<T>,
    tokens: &mut impl Write<i32>,
) -> Result<(), GpuError> {
    let rows = tokens.len();
    if rows == 0 {
        return exactly(OP, "logits", logits.len(), 0);
    }
    let vocab = logits.len() / rows;
    exactly(OP, "logits", logits.len(), rows * vocab)?;
    let args = gpu.args().read(logits).write(tokens).int(vocab);
    // SAFETY: shapes are checked above.
    unsafe { gpu.kernel(OP, T::ARGMAX)?.launch(Grid::line(rows, 1024), args, gpu.overlaps()) }
}
