//! Logits changed before tokens are drawn from them.
#![expect(unsafe_code, reason = "launches kernels")]

use cudarc::driver::CudaView;

use super::{
    Gpu, Write,
    embed::Tokens,
    error::{GpuError, at_least, exactly, multiple},
    launch::Grid,
};
use crate::{Shape, shape::mask_words};

const OP: &str = "shape";

const THREADS: usize = 1024;

/// How each row is changed.
#[derive(Debug)]
pub struct Shapes<'a> {
    /// [`Shape::words`] of each row. Their slots and rows cannot be checked here.
    pub words: CudaView<'a, i32>,
    /// Tokens that may be drawn, `[row][mask_words(vocab)]`; read of rows that say so.
    pub masks: CudaView<'a, i32>,
    /// Tokens of the step's rows, of which the newest of each sequence joins its list.
    pub tokens: &'a Tokens<'a>,
    /// Entries that a list has room for, its head counted.
    pub capacity: usize,
}

/// Changes `logits[row]` as `shapes` say; `lists` are `[slot][capacity][2]`, each as
/// [`List::words`](crate::shape::List::words) makes it. A token more than a list has room for is not noted.
///
/// # Errors
/// When shapes do not fit.
pub fn shape(
    gpu: &Gpu,
    shapes: &Shapes<'_>,
    lists: &mut impl Write<i32>,
    logits: &mut impl Write<f32>,
) -> Result<(), GpuError> {
    let Shapes { words, masks, tokens, capacity } = shapes;
    multiple(OP, "words of shapes", words.len(), Shape::WORDS)?;
    multiple(OP, "words of lists", lists.len(), 2 * (*capacity).max(1))?;
    let rows = words.len() / Shape::WORDS;
    if rows == 0 {
        return exactly(OP, "logits", logits.len(), 0);
    }
    let vocab = logits.len() / rows;
    exactly(OP, "logits", logits.len(), rows * vocab)?;
    at_least(OP, "words of masks", masks.len(), rows * mask_words(vocab))?;
    let drawn_tokens = tokens.drawn.as_ref().map_or(0, CudaView::len);
    let args = gpu.args().write(logits).read(words).read(masks).write(lists).read(&tokens.rows);
    let args = args.read_or_null(tokens.drawn.as_ref()).int(drawn_tokens).int(vocab).int(*capacity);
    // SAFETY: shapes are checked above; slots and rows are the caller's promise, tokens are
    // checked in the kernel.
    unsafe { gpu.kernel(OP, OP)?.launch(Grid::line(rows, THREADS), args, gpu.overlaps()) }
}
