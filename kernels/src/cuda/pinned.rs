//! Page-locked memory of the machine, which copies to and from a card run beside.
#![expect(unsafe_code, reason = "the driver hands out page-locked memory unset")]

use std::{fmt, ops::Range};

use cudarc::driver::{CudaEvent, DevicePtr, DevicePtrMut, DeviceRepr, PinnedHostSlice, ValidAsZeroBits};

use super::{
    Gpu,
    error::{GpuError, Named},
};

/// Elements in page-locked memory. Copies are only enqueued; looking at the
/// elements waits for the last of them.
pub struct Pinned<T> {
    memory: PinnedHostSlice<T>,
    address: u64,
    last_copy: CudaEvent,
}

// === impl Pinned ===

impl<T: DeviceRepr + ValidAsZeroBits> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// When the machine has not so much.
    pub fn zeros(gpu: &Gpu, len: usize) -> Result<Self, GpuError> {
        // Not write-combined: tokens and rows are read from it too.
        // SAFETY: all of it is set before anybody sees it.
        let memory = unsafe { gpu.context().alloc_pinned_with_flags(len, 0) };
        let mut memory = memory.named("cuMemHostAlloc")?;
        let start = memory.as_mut_ptr().named("cuEventSynchronize")?;
        // SAFETY: `len` elements of numbers, for which zero bits are a value.
        unsafe { std::ptr::write_bytes(start, 0, len) };
        let last_copy = gpu.context().new_event(None).named("cuEventCreate")?;
        Ok(Self { memory, address: start.expose_provenance() as u64, last_copy })
    }

    /// Where they are, for the machine and every card. Who uses it knows what is under way.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// The elements, once nothing is copied from or to them any more.
    ///
    /// # Errors
    /// When what was enqueued before the last copy has failed.
    pub fn get(&self) -> Result<&[T], GpuError> {
        self.last_copy.synchronize().named("cuEventSynchronize")?;
        self.memory.as_slice().named("cuEventSynchronize")
    }

    /// As [`get`](Self::get), to be changed.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_mut(&mut self) -> Result<&mut [T], GpuError> {
        self.last_copy.synchronize().named("cuEventSynchronize")?;
        self.memory.as_mut_slice().named("cuEventSynchronize")
    }

    /// Enqueues a copy of elements `at` to the start of `to`.
    ///
    /// # Errors
    /// When `at` is not there, `to` is shorter, or the driver refuses.
    pub fn copy_to(
        &self,
        gpu: &Gpu,
        at: Range<usize>,
        to: &mut impl DevicePtrMut<T>,
    ) -> Result<(), GpuError> {
        let from = self.memory.as_slice().named("cuEventSynchronize")?;
        let from = from.get(at.clone()).ok_or_else(|| self.out_of_range(&at))?;
        fits("elements to copy to", to.len(), from.len())?;
        gpu.stream().memcpy_htod(from, to).named("cuMemcpyHtoDAsync")?;
        self.last_copy.record(gpu.stream()).named("cuEventRecord")
    }

    /// Enqueues a copy of all of `from` to elements `at`..
    ///
    /// # Errors
    /// As [`copy_to`](Self::copy_to).
    pub fn copy_from(&mut self, gpu: &Gpu, at: usize, from: &impl DevicePtr<T>) -> Result<(), GpuError> {
        let range = at..at + from.len();
        let refused = self.out_of_range(&range);
        let to = self.memory.as_mut_slice().named("cuEventSynchronize")?;
        let to = to.get_mut(range).ok_or(refused)?;
        gpu.stream().memcpy_dtoh(from, to).named("cuMemcpyDtoHAsync")?;
        self.last_copy.record(gpu.stream()).named("cuEventRecord")
    }

    fn out_of_range(&self, range: &Range<usize>) -> GpuError {
        GpuError::Shape { op: "copy", what: "pinned elements", found: self.len(), needed: range.end }
    }
}

fn fits(what: &'static str, found: usize, needed: usize) -> Result<(), GpuError> {
    super::error::at_least("copy", what, found, needed)
}

impl<T> Drop for Pinned<T> {
    /// The memory goes after the last copy has ended; an error was or will be told elsewhere.
    fn drop(&mut self) {
        let _ = self.last_copy.synchronize();
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}
