//! Many pieces of device memory copied by one launch: pages gathered into a
//! frame, or a frame scattered into pages.
#![expect(unsafe_code, reason = "launches a kernel on addresses")]

use std::{
    fmt,
    hint::spin_loop,
    ptr::with_exposed_provenance_mut,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream};

use super::{
    Gpu, Pinned,
    error::{GpuError, Named, multiple},
    launch::Grid,
};

const OP: &str = "pieces";

/// What a block copies at most, and its threads: four times 16 bytes each.
const BLOCK_BYTES: u64 = 32 << 10;
const THREADS: usize = 512;
/// Pieces of a launch at most: parameters have room for no more.
const MOST: usize = 168;

/// How long a frame is waited for by looking at its report, which the driver takes
/// microseconds longer to tell.
const SPIN: Duration = Duration::from_micros(100);

/// One piece: `bytes` bytes at address `from` go to address `to`. All three are
/// multiples of 4, best of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceCopy {
    /// Device address that is read.
    pub from: u64,
    /// Device address that is written.
    pub to: u64,
    /// How much.
    pub bytes: u64,
}

/// A piece as the kernel takes it: place in the frame and size are in words of 32 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Listed {
    from: u64,
    to: u64,
    at: u32,
    words: u32,
}

/// A frame's pieces copied together; used again and again, one frame at a time.
pub struct Pieces {
    progress: CudaSlice<u32>,
    /// Of the frame that ended last: its turn in the upper half, its check word in the lower.
    report: Pinned<u64>,
    /// The turn of the last frame.
    turn: u32,
    /// Where it was enqueued, to wait for one that takes longer or fails.
    stream: Arc<CudaStream>,
}

// === impl Pieces ===

impl Pieces {
    /// An empty frame.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        let (progress, report) = (gpu.zeros(2)?, Pinned::zeros(gpu, 1)?);
        Ok(Self { progress, report, turn: 0, stream: gpu.stream().clone() })
    }

    /// Enqueues the copies, after waiting for the frame before. The pieces in
    /// their order are a frame; with `checked`, [`finish`](Self::finish) gives its
    /// [`check_word`](crate::reference::check_word).
    ///
    /// # Safety
    /// All of the pieces is memory that this card reads or writes, and stays so until
    /// the frame has finished; nobody writes what it reads or uses what it writes.
    ///
    /// # Errors
    /// When a piece is not of whole words, or a launch fails.
    pub unsafe fn copy(&mut self, gpu: &Gpu, pieces: &[PieceCopy], checked: bool) -> Result<(), GpuError> {
        self.finish()?;
        let mut lists = Vec::with_capacity(pieces.len().div_ceil(MOST));
        let mut at = 0;
        for pieces in pieces.chunks(MOST) {
            lists.push((blocks(pieces), listed(pieces, &mut at)?));
        }
        let all = lists.iter().map(|([x, y, _], _)| x * y).sum();
        // From here on, should a launch fail, all before it are waited for.
        self.turn = self.turn.wrapping_add(1);
        if all == 0 {
            self.report().store(u64::from(self.turn) << 32, Ordering::Release);
        }
        let kernel = gpu.kernel(OP, if checked { "copy_pieces_checked" } else { "copy_pieces" })?;
        self.stream.clone_from(gpu.stream());
        for (blocks, list) in &lists {
            let args = gpu.args().record(bytemuck::cast_slice(list)).write(&mut self.progress);
            // Page-locked memory has one address for the machine and all cards.
            let args = args.long(self.report.address()).int(self.turn as usize).int(all);
            let grid = Grid { blocks: *blocks, ..Grid::line(1, THREADS) };
            // SAFETY: the list holds what the caller vouches for.
            unsafe { kernel.launch(grid, args, gpu.overlaps())? };
        }
        Ok(())
    }

    /// Whether the frame has finished. One that failed never does: [`finish`](Self::finish) tells.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.told().is_some()
    }

    /// Waits for the frame; its check word, if it was asked for.
    ///
    /// # Errors
    /// When the device failed.
    pub fn finish(&self) -> Result<u32, GpuError> {
        let begun = Instant::now();
        while begun.elapsed() < SPIN {
            if let Some(check) = self.told() {
                return Ok(check);
            }
            spin_loop();
        }
        self.stream.synchronize().named("cuStreamSynchronize")?;
        Ok(self.report().load(Ordering::Acquire) as u32)
    }

    /// The check word of the last frame once its report is there: all it wrote is visible then.
    fn told(&self) -> Option<u32> {
        let report = self.report().load(Ordering::Acquire);
        ((report >> 32) as u32 == self.turn).then_some(report as u32)
    }

    fn report(&self) -> &AtomicU64 {
        // SAFETY: one aligned word that lives as long as `self`, changed by the card at once.
        unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(self.report.address() as usize)) }
    }
}

/// Blocks of a launch: a column for each piece, as long as the longest takes.
fn blocks(pieces: &[PieceCopy]) -> [usize; 3] {
    let longest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
    [longest.div_ceil(BLOCK_BYTES) as usize, pieces.len(), 1]
}

/// The parameter of a launch, of pieces from word `at` of the frame on.
fn listed(pieces: &[PieceCopy], at: &mut u32) -> Result<[Listed; MOST], GpuError> {
    let mut list = [Listed::zeroed(); MOST];
    for (piece, listed) in pieces.iter().zip(&mut list) {
        for (what, number) in [("address", piece.from | piece.to), ("bytes of a piece", piece.bytes)] {
            multiple(OP, what, number as usize, 4)?;
        }
        let words = (piece.bytes / 4) as u32;
        *listed = Listed { from: piece.from, to: piece.to, at: *at, words };
        *at = at.wrapping_add(words);
    }
    Ok(list)
}

impl Drop for Pieces {
    /// What was enqueued writes the report; an error was or will be told elsewhere.
    fn drop(&mut self) {
        if self.told().is_none() {
            let _ = self.stream.synchronize();
        }
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").finish_non_exhaustive()
    }
}
