//! Many pieces of device memory copied by one launch: pages gathered into a
//! frame, or a frame scattered into pages.
#![expect(unsafe_code, reason = "launches a kernel on addresses")]

use std::fmt;

use cudarc::driver::{CudaEvent, CudaSlice};

use super::{
    Gpu, Pinned,
    error::{GpuError, Named, multiple},
    launch::Grid,
};

const OP: &str = "pieces";

/// What a block copies at most: four times 16 bytes a thread.
const BLOCK_BYTES: u64 = 16 << 10;
const THREADS: usize = 256;
/// Words of an entry: from, to, place in the frame, bytes.
const ENTRY: usize = 4;
/// Entries that a new list has room for: a frame of 2 MiB.
const FIRST_ENTRIES: usize = 128;

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
    check: Pinned<u32>,
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
            check: Pinned::zeros(gpu, 1)?,
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
        self.done.synchronize().named("cuEventSynchronize")?;
        let entries = self.write(gpu, pieces)?;
        if entries > 0 {
            // Page-locked memory has one address for the machine and all cards.
            let list = self.list.get()?.as_ptr() as u64;
            let args = gpu.args().long(list);
            let (kernel, args) = if checked {
                let check = self.check.get()?.as_ptr() as u64;
                ("copy_pieces_checked", args.write(&mut self.progress).long(check))
            } else {
                ("copy_pieces", args)
            };
            let kernel = gpu.kernel(OP, kernel)?;
            // SAFETY: the list holds `entries` entries of what the caller vouches for.
            unsafe { kernel.launch(Grid::line(entries, THREADS), args, gpu.overlaps())? };
        } else {
            self.check.get_mut()?[0] = 0;
        }
        self.done.record(gpu.stream()).named("cuEventRecord")
    }

    /// Whether the launch has finished.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.is_complete()
    }

    /// Waits for the launch; the check word of what it copied, if it was asked for.
    ///
    /// # Errors
    /// When the device failed.
    pub fn finish(&self) -> Result<u32, GpuError> {
        self.done.synchronize().named("cuEventSynchronize")?;
        Ok(self.check.get()?[0])
    }

    /// Writes the list, a block's share an entry; how many there are.
    fn write(&mut self, gpu: &Gpu, pieces: &[PieceCopy]) -> Result<usize, GpuError> {
        let entries = pieces.iter().map(|piece| piece.bytes.div_ceil(BLOCK_BYTES) as usize).sum::<usize>();
        if self.list.len() < entries * ENTRY {
            self.list = Pinned::zeros(gpu, entries.next_power_of_two() * ENTRY)?;
        }
        let mut list = self.list.get_mut()?.chunks_exact_mut(ENTRY);
        let mut at = 0;
        for piece in pieces {
            for (what, number) in [("address", piece.from | piece.to), ("bytes of a piece", piece.bytes)] {
                multiple(OP, what, number as usize, 4)?;
            }
            for first in (0..piece.bytes).step_by(BLOCK_BYTES as usize) {
                let bytes = BLOCK_BYTES.min(piece.bytes - first);
                if let Some(entry) = list.next() {
                    entry.copy_from_slice(&[piece.from + first, piece.to + first, at, bytes]);
                }
                at += bytes;
            }
        }
        Ok(entries)
    }
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
