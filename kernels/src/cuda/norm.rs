//! Root mean square norms, fused with the residual stream's sum.
#![expect(unsafe_code, reason = "launches kernels")]

use cudarc::driver::CudaView;

use super::{
    Gpu, Half, Read, Write,
    error::{GpuError, at_least, exactly, multiple},
    launch::Grid,
};

const OP: &str = "norm";

/// Elements that the threads of one block hold.
const MAX_WIDTH: usize = 1024 * 4 * 8;

/// Elements of a row of which a thread of a block holds one vector, with `rms_norm_short`.
const SHORT_WIDTH: usize = 512 * 8;

/// Weights of a norm. They are read before ops enqueued earlier have ended: who writes them
/// synchronizes before their first use.
#[derive(Debug)]
pub struct Norm<'a> {
    /// One factor for each element of a row.
    pub weight: CudaView<'a, Half>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Some heads of each row of a matrix: `[row][stride]`, of which `[heads][head_dim]` from `start`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Elements of a row.
    pub stride: usize,
    /// The first element of the first head.
    pub start: usize,
    /// How many heads.
    pub heads: usize,
}

// === impl Norm ===

impl Norm<'_> {
    /// `out[row] = x[row] / sqrt(mean of x[row]^2 + eps) * weight`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, gpu: &Gpu, x: &impl Read<Half>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        let Some(grid) = self.rows(x.len(), out.len())? else { return Ok(()) };
        let args = gpu.args().read(x).read(&self.weight).write(out).int(self.weight.len()).float(self.eps);
        let function = if self.weight.len() <= SHORT_WIDTH { "rms_norm_short" } else { "rms_norm" };
        // SAFETY: shapes are checked by `rows`.
        unsafe { gpu.kernel(OP, function)?.launch(grid, args, gpu.overlaps()) }
    }

    /// `x += delta`, then `out` as [`Self::run`] makes it of `x`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn add(
        &self,
        gpu: &Gpu,
        x: &mut impl Write<Half>,
        delta: &impl Read<Half>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        exactly(OP, "elements added", delta.len(), x.len())?;
        let Some(grid) = self.rows(x.len(), out.len())? else { return Ok(()) };
        let args = gpu.args().write(x).read(delta).read(&self.weight).write(out);
        let args = args.int(self.weight.len()).float(self.eps);
        // SAFETY: shapes are checked above and by `rows`.
        unsafe { gpu.kernel(OP, "add_rms_norm")?.launch(grid, args, gpu.overlaps()) }
    }

    /// `x += norm(delta)`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn then_add(
        &self,
        gpu: &Gpu,
        x: &mut impl Write<Half>,
        delta: &impl Read<Half>,
    ) -> Result<(), GpuError> {
        let Some(grid) = self.rows(x.len(), delta.len())? else { return Ok(()) };
        let args = gpu.args().write(x).read(delta).read(&self.weight);
        let args = args.int(self.weight.len()).float(self.eps);
        // SAFETY: shapes are checked by `rows`.
        unsafe { gpu.kernel(OP, "norm_add")?.launch(grid, args, gpu.overlaps()) }
    }

    /// Norms each head by itself, in place; weights are as long as a head.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn heads(&self, gpu: &Gpu, which: Heads, x: &mut impl Write<Half>) -> Result<(), GpuError> {
        let head_dim = self.weight.len();
        at_least(OP, "elements of a row", which.stride, which.start + which.heads * head_dim)?;
        if x.is_empty() || which.heads == 0 {
            return Ok(());
        }
        multiple(OP, "elements", x.len(), which.stride)?;
        let rows = x.len() / which.stride;
        let args = gpu.args().write(x).read(&self.weight).int(which.start);
        let args = args.int(which.heads).int(head_dim).int(which.stride).float(self.eps);
        let grid = Grid::line(rows, 32 * which.heads.min(8));
        // SAFETY: heads lie inside rows, rows inside `x`.
        unsafe { gpu.kernel(OP, "head_norm")?.launch(grid, args, gpu.overlaps()) }
    }

    /// Norms columns from `start` on together, in place, as many as there are weights, of rows
    /// of `stride` elements.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn part(
        &self,
        gpu: &Gpu,
        start: usize,
        stride: usize,
        x: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        let width = self.weight.len();
        at_least(OP, "elements of a row", stride, start + width)?;
        if x.is_empty() || width == 0 {
            return Ok(());
        }
        multiple(OP, "elements", x.len(), stride)?;
        let args = gpu.args().write(x).read(&self.weight).int(start).int(width).int(stride).float(self.eps);
        let grid = Grid::line(x.len() / stride, width.div_ceil(8).next_multiple_of(32).min(512));
        // SAFETY: columns lie inside rows, rows inside `x`.
        unsafe { gpu.kernel(OP, "part_norm")?.launch(grid, args, gpu.overlaps()) }
    }

    /// The grid for `elements`, if there are any.
    fn rows(&self, elements: usize, others: usize) -> Result<Option<Grid>, GpuError> {
        let width = self.weight.len();
        multiple(OP, "width", width, 8)?;
        at_least(OP, "widest row", MAX_WIDTH, width)?;
        exactly(OP, "elements out", others, elements)?;
        if elements == 0 {
            return Ok(None);
        }
        multiple(OP, "elements", elements, width)?;
        // Enough threads to hold the row; more than it needs would only wait.
        let threads = (width / 8).next_multiple_of(32);
        let threads =
            if threads <= 512 { threads } else { threads.div_ceil(4).next_multiple_of(32).max(512) };
        Ok(Some(Grid::line(elements / width, threads.min(1024))))
    }
}
