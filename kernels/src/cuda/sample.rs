//! Tokens drawn from rows of logits.
#![expect(unsafe_code, reason = "launches kernels")]

use super::{
    Gpu, Read, Write,
    error::{GpuError, exactly},
    launch::Grid,
};
use crate::Draw;

const OP: &str = "sample";

/// As in the kernel.
const THREADS: usize = 1024;

/// `tokens[row]` = a token drawn from `logits[row]`, which are `logits.len() / tokens.len()`
/// each, as [`Draw::words`] of `draws` say. NaN is never drawn; a row without any usable
/// logit gives -1. What comes out depends on the row and its draw alone.
///
/// # Errors
/// When shapes do not fit.
pub fn sample(
    gpu: &Gpu,
    logits: &impl Read<f32>,
    draws: &impl Read<i32>,
    tokens: &mut impl Write<i32>,
) -> Result<(), GpuError> {
    let rows = tokens.len();
    exactly(OP, "words of draws", draws.len(), rows * Draw::WORDS)?;
    if rows == 0 {
        return exactly(OP, "logits", logits.len(), 0);
    }
    let vocab = logits.len() / rows;
    exactly(OP, "logits", logits.len(), rows * vocab)?;
    let args = gpu.args().read(logits).read(draws).write(tokens).int(vocab);
    // SAFETY: shapes are checked above.
    unsafe { gpu.kernel(OP, OP)?.launch(Grid::line(rows, THREADS), args, gpu.overlaps()) }
}
