//! Pages in a card's memory.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::Arc,
};

use baton_kernels::cuda::{
    Gpu, GpuError, Half, Pinned,
    cudarc::driver::{CudaEvent, CudaSlice, DevicePtr},
};
use baton_protocol::{DeviceSpan, KvShape};
use parking_lot::{Mutex, MutexGuard};

use crate::kv::{FillBytes, KvStore, PageId, Piece, UseBytes};

/// `[page][layer][token][row]` in one piece of device memory, which is counted in [`Half`]s
/// whatever a row consists of.
///
/// Handoffs copy through page-locked buffers on streams of their own, or from card to
/// card by the addresses of pages. Of the steps' stream they wait for copies of pages alone:
/// they read rows that a step has reported after they were written, and write pages that no
/// step uses before they are done.
pub(super) struct DevicePages {
    gpu: Gpu,
    shape: KvShape,
    pages: usize,
    rows: Mutex<CudaSlice<Half>>,
    /// When the last copy of a page, which nobody reports, has ended.
    copied: CudaEvent,
    spare: Mutex<Vec<Staging>>,
}

/// Pages on a card for whoever has no engine on it.
///
/// # Errors
/// When the card has no room.
pub fn pages(gpu: &Gpu, shape: KvShape, pages: usize) -> Result<Arc<dyn KvStore>, GpuError> {
    Ok(Arc::new(DevicePages::new(gpu, shape, pages)?))
}

/// A buffer for one handoff at a time.
struct Staging {
    gpu: Gpu,
    bytes: Pinned<Half>,
}

/// Buffers kept for the next handoffs.
const MAX_SPARE: usize = 4;

/// Smallest buffer, in halves: 4 MiB.
const MIN_STAGING: usize = 2 << 20;

// === impl DevicePages ===

impl DevicePages {
    pub fn new(gpu: &Gpu, shape: KvShape, pages: usize) -> Result<Self, GpuError> {
        let rows = Mutex::new(gpu.zeros(pages * page_halves(&shape))?);
        gpu.synchronize()?;
        let copied = super::event(gpu)?;
        Ok(Self { gpu: gpu.clone(), shape, pages, rows, copied, spare: Mutex::default() })
    }

    /// All rows. Held while work is enqueued, never while waiting for it.
    pub fn rows(&self) -> MutexGuard<'_, CudaSlice<Half>> {
        self.rows.lock()
    }

    /// Waits for copies of pages that were enqueued before.
    fn wait_for_copies(&self) -> io::Result<()> {
        self.copied.synchronize().map_err(io::Error::other)
    }

    /// A piece's place.
    fn halves(&self, piece: &Piece) -> Range<usize> {
        let first = (piece.page.0 as usize * self.shape.layers as usize + piece.layer)
            * (page_halves(&self.shape) / self.shape.layers as usize);
        first + piece.bytes.start / 2..first + piece.bytes.end / 2
    }

    fn staging(&self, halves: usize) -> Result<Staging, GpuError> {
        let mut spare = self.spare.lock();
        if let Some(at) = spare.iter().position(|staging| staging.bytes.len() >= halves) {
            return Ok(spare.swap_remove(at));
        }
        drop(spare);
        let gpu = self.gpu.beside()?;
        let bytes = Pinned::zeros(&gpu, halves.next_power_of_two().max(MIN_STAGING))?;
        Ok(Staging { gpu, bytes })
    }

    fn give_back(&self, staging: Staging) {
        let mut spare = self.spare.lock();
        if spare.len() == MAX_SPARE {
            spare.remove(0);
        }
        spare.push(staging);
    }
}

impl KvStore for DevicePages {
    fn shape(&self) -> &KvShape {
        &self.shape
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn read(&self, pieces: &[Piece], use_bytes: &mut UseBytes<'_>) -> io::Result<()> {
        self.wait_for_copies()?;
        let mut staging = self.staging(halves_of(pieces)).map_err(io::Error::other)?;
        let Staging { gpu, bytes } = &mut staging;
        let mut at = 0;
        {
            let rows = self.rows();
            for range in pieces.iter().map(|piece| self.halves(piece)) {
                bytes.copy_from(gpu, at, &rows.slice(range.clone())).map_err(io::Error::other)?;
                at += range.len();
            }
        }
        let mut rest: &[u8] = bytemuck::cast_slice(bytes.get().map_err(io::Error::other)?);
        let slice = |piece: &Piece| {
            let (these, others) = rest.split_at(piece.bytes.len());
            rest = others;
            IoSlice::new(these)
        };
        let slices: Vec<_> = pieces.iter().map(slice).collect();
        let used = use_bytes(&slices);
        self.give_back(staging);
        used
    }

    fn write(&self, pieces: &[Piece], fill: &mut FillBytes<'_>) -> io::Result<()> {
        self.wait_for_copies()?;
        let mut staging = self.staging(halves_of(pieces)).map_err(io::Error::other)?;
        let Staging { gpu, bytes } = &mut staging;
        let mut rest: &mut [u8] = bytemuck::cast_slice_mut(bytes.get_mut().map_err(io::Error::other)?);
        let slice = |piece: &Piece| {
            let (these, others) = std::mem::take(&mut rest).split_at_mut(piece.bytes.len());
            rest = others;
            IoSliceMut::new(these)
        };
        let mut slices: Vec<_> = pieces.iter().map(slice).collect();
        if let Err(error) = fill(&mut slices) {
            self.give_back(staging);
            return Err(error);
        }
        let mut at = 0;
        {
            let mut rows = self.rows();
            for range in pieces.iter().map(|piece| self.halves(piece)) {
                let from = at..at + range.len();
                at = from.end;
                bytes.copy_to(gpu, from, &mut rows.slice_mut(range)).map_err(io::Error::other)?;
            }
        }
        gpu.synchronize().map_err(io::Error::other)?;
        self.give_back(staging);
        Ok(())
    }

    fn on_device(&self, pieces: &[Piece]) -> io::Result<Option<DeviceSpan>> {
        self.wait_for_copies()?;
        let rows = self.rows();
        let (start, _unused_event) = rows.device_ptr(self.gpu.stream());
        let place = |piece: &Piece| {
            let halves = self.halves(piece);
            (start + halves.start as u64 * 2, halves.len() as u64 * 2)
        };
        let pieces = pieces.iter().map(place).collect();
        Ok(Some(DeviceSpan { device: self.gpu.ordinal(), pieces }))
    }

    fn copy_page(&self, from: PageId, to: PageId) {
        let size = page_halves(&self.shape);
        let (low, high) = (from.0.min(to.0) as usize, from.0.max(to.0) as usize);
        let mut rows = self.rows();
        let (mut lower, mut upper) = rows.split_at_mut(high * size);
        let (low, high) = (lower.slice_mut(low * size..(low + 1) * size), upper.slice_mut(..size));
        let (source, mut target) = if from < to { (&low, high) } else { (&high, low) };
        // On the steps' stream, so in order with them.
        let stream = self.gpu.stream();
        let copied = stream.memcpy_dtod(source, &mut target).and_then(|()| self.copied.record(stream));
        if let Err(error) = copied {
            tracing::error!(%error, "cannot copy a kv page");
        }
    }

    fn zero_pages(&self, pages: &[PageId]) {
        let (size, stream) = (page_halves(&self.shape), self.gpu.stream());
        let mut rows = self.rows();
        let mut zeroed = pages.iter().try_for_each(|page| {
            let at = page.0 as usize * size;
            stream.memset_zeros(&mut rows.slice_mut(at..at + size))
        });
        // Handoffs write on streams of their own, and wait for this as for copies.
        zeroed = zeroed.and_then(|()| self.copied.record(stream));
        if let Err(error) = zeroed {
            tracing::error!(%error, "cannot zero kv pages");
        }
    }
}

/// Size of a page with all its layers.
fn page_halves(shape: &KvShape) -> usize {
    shape.token_bytes() * shape.page_tokens as usize / 2
}

fn halves_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() / 2
}
