//! Many pieces of device memory copied by one launch: pages gathered into a
//! frame, or a frame scattered into pages.
#![expect(unsafe_code, reason = "launches a kernel on addresses")]

use std::{
    fmt,
    hint::spin_loop,
    ops::RangeInclusive,
    ptr::with_exposed_provenance_mut,
    slice,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use cudarc::driver::{CudaEvent, CudaSlice};

use super::{
    Gpu, Pinned,
    error::{GpuError, Named, multiple},
    launch::Grid,
};

const OP: &str = "pieces";

/// What a block copies at most: four times 16 bytes a thread, once in a small frame and four
/// times in a large one, where starting blocks would take longer than copying.
const BLOCK_BYTES: RangeInclusive<u64> = 16 << 10..=64 << 10;
/// Blocks of a frame, so long as theirs is a size between.
const BLOCKS: u64 = 32;
const THREADS: usize = 256;
/// Words of an entry: from, to, place in the frame, bytes.
const ENTRY: usize = 4;
/// Entries that a new list has room for: a frame of 2 MiB.
const FIRST_ENTRIES: usize = 128;

/// How long a launch is waited for by looking at its report, which the driver's events take
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

/// A list of pieces that one launch copies; used again and again, one launch at a time.
pub struct Pieces {
    list: Pinned<u64>,
    progress: CudaSlice<u32>,
    /// Of the launch that ended last: its turn in the upper half, its check word in the lower.
    report: Pinned<u64>,
    /// The turn of the last launch.
    turn: u32,
    /// For a launch that takes longer or fails.
    done: CudaEvent,
}

// === impl Pieces ===

impl Pieces {
    /// An empty list.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self {
            list: Pinned::zeros(gpu, FIRST_ENTRIES * ENTRY)?,
            progress: gpu.zeros(2)?,
            report: Pinned::zeros(gpu, 1)?,
            turn: 0,
            done: gpu.context().new_event(None).named("cuEventCreate")?,
        })
    }

    /// Enqueues the copies, after waiting for this list's launch before. The pieces in
    /// their order are a frame; with `checked`, [`finish`](Self::finish) gives its
    /// [`check_word`](crate::reference::check_word).
    ///
    /// # Safety
    /// All of the pieces is memory that this card reads or writes, and stays so until
    /// the launch has finished; nobody writes what it reads or uses what it writes.
    ///
    /// # Errors
    /// When a piece is not of whole words, or the launch fails.
    pub unsafe fn copy(&mut self, gpu: &Gpu, pieces: &[PieceCopy], checked: bool) -> Result<(), GpuError> {
        self.finish()?;
        let entries = self.write(gpu, pieces)?;
        let turn = self.turn.wrapping_add(1);
        if entries == 0 {
            self.report().store(u64::from(turn) << 32, Ordering::Release);
            self.turn = turn;
            return Ok(());
        }
        let kernel = gpu.kernel(OP, if checked { "copy_pieces_checked" } else { "copy_pieces" })?;
        // Page-locked memory has one address for the machine and all cards.
        let args = gpu.args().long(self.list.address()).write(&mut self.progress);
        let args = args.long(self.report.address()).int(turn as usize);
        // SAFETY: the list holds `entries` entries of what the caller vouches for.
        unsafe { kernel.launch(Grid::line(entries, THREADS), args, gpu.overlaps())? };
        self.turn = turn;
        self.done.record(gpu.stream()).named("cuEventRecord")
    }

    /// Whether the launch has finished.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.told().is_some() || self.done.is_complete()
    }

    /// Waits for the launch; the check word of what it copied, if it was asked for.
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
        self.done.synchronize().named("cuEventSynchronize")?;
        Ok(self.report().load(Ordering::Acquire) as u32)
    }

    /// The check word of the last launch once its report is there: all it wrote is visible then.
    fn told(&self) -> Option<u32> {
        let report = self.report().load(Ordering::Acquire);
        ((report >> 32) as u32 == self.turn).then_some(report as u32)
    }

    fn report(&self) -> &AtomicU64 {
        // SAFETY: one aligned word that lives as long as `self`, changed by the card at once.
        unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(self.report.address() as usize)) }
    }

    /// Writes the list, a block's share an entry; how many there are.
    fn write(&mut self, gpu: &Gpu, pieces: &[PieceCopy]) -> Result<usize, GpuError> {
        let block = block_bytes(pieces);
        let entries = pieces.iter().map(|piece| piece.bytes.div_ceil(block) as usize).sum::<usize>();
        if self.list.len() < entries * ENTRY {
            self.list = Pinned::zeros(gpu, entries.next_power_of_two() * ENTRY)?;
        }
        let start = with_exposed_provenance_mut(self.list.address() as usize);
        // SAFETY: the list, which the launch that ended before has read.
        let list: &mut [u64] = unsafe { slice::from_raw_parts_mut(start, self.list.len()) };
        let mut list = list.chunks_exact_mut(ENTRY);
        let mut at = 0;
        for piece in pieces {
            for (what, number) in [("address", piece.from | piece.to), ("bytes of a piece", piece.bytes)] {
                multiple(OP, what, number as usize, 4)?;
            }
            for first in (0..piece.bytes).step_by(block as usize) {
                let bytes = block.min(piece.bytes - first);
                if let Some(entry) = list.next() {
                    entry.copy_from_slice(&[piece.from + first, piece.to + first, at, bytes]);
                }
                at += bytes;
            }
        }
        Ok(entries)
    }
}

/// What a block copies of a frame of these pieces; a multiple of 16.
fn block_bytes(pieces: &[PieceCopy]) -> u64 {
    let frame: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    (frame / BLOCKS).next_multiple_of(1 << 10).clamp(*BLOCK_BYTES.start(), *BLOCK_BYTES.end())
}

impl Drop for Pieces {
    /// The list is read until the launch has finished; an error was or will be told elsewhere.
    fn drop(&mut self) {
        let _ = self.done.synchronize();
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").finish_non_exhaustive()
    }
}
