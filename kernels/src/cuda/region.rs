//! Device memory that processes of one host share.
#![expect(unsafe_code, reason = "memory that another process maps has no owner in Rust")]

use std::fmt;

use cudarc::driver::{result, sys};

use super::{
    Gpu,
    error::{GpuError, Named, at_least},
};

/// Bytes of a handle.
pub const HANDLE_BYTES: usize = 64;

/// Device memory with an address of its own, which another process may map. Freed when dropped.
pub struct Region {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

/// A [`Region`] of another process of this host, on whichever card. Unmapped when dropped.
pub struct Mapped {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

/// Lets copies between two cards go over the link between them; without, they pass through the machine's memory.
///
/// # Errors
/// When they do not reach each other.
pub fn join(one: &Gpu, two: &Gpu) -> Result<(), GpuError> {
    for (here, there) in [(one, two), (two, one)] {
        here.context().bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: a living context.
        let joined = unsafe { sys::cuCtxEnablePeerAccess(there.context().cu_ctx(), 0) };
        if joined != sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            joined.result().named("cuCtxEnablePeerAccess")?;
        }
    }
    Ok(())
}

// === impl Region ===

impl Region {
    /// Memory that holds whatever was there.
    ///
    /// # Errors
    /// When there is not so much.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, GpuError> {
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: not read before something is written. Not from a pool: those cannot be shared so.
        let address = unsafe { result::malloc_sync(bytes) }.named("cuMemAlloc")?;
        Ok(Self { gpu: gpu.clone(), address, bytes })
    }

    /// Its address on this card.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// By which another process maps it; whoever has it can read and write the region.
    ///
    /// # Errors
    /// When the system does not allow sharing.
    pub fn handle(&self) -> Result<[u8; HANDLE_BYTES], GpuError> {
        self.gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; HANDLE_BYTES] };
        // SAFETY: an address that cuMemAlloc gave, and a place for a handle.
        unsafe { sys::cuIpcGetMemHandle(&raw mut handle, self.address) }
            .result()
            .named("cuIpcGetMemHandle")?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }

    /// Copies bytes of the machine to `at`, in order with the work of `gpu`, and waits.
    ///
    /// # Errors
    /// When they do not fit, or the device failed.
    pub fn write(&mut self, gpu: &Gpu, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        at_least("copy", "bytes of a region", self.bytes, at + bytes.len())?;
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let stream = gpu.stream().cu_stream();
        // SAFETY: within the region, and both live until the wait below is over.
        unsafe { result::memcpy_htod_async(self.address + at as u64, bytes, stream) }
            .named("cuMemcpyHtoDAsync")?;
        gpu.synchronize()
    }

    /// Enqueues copying `bytes` at `at` from the same place of another region, of this card or another one,
    /// in order with the work of `gpu`. Both are kept until that is done, which dropping one waits for.
    ///
    /// # Errors
    /// When they do not fit, or the device failed.
    pub fn copy_from(&mut self, gpu: &Gpu, at: usize, from: &Self, bytes: usize) -> Result<(), GpuError> {
        at_least("copy", "bytes of a region", self.bytes.min(from.bytes), at + bytes)?;
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let stream = gpu.stream().cu_stream();
        let (to, source) = (self.address + at as u64, from.address + at as u64);
        let contexts = (self.gpu.context().cu_ctx(), from.gpu.context().cu_ctx());
        // SAFETY: within both regions; freeing either waits for what is enqueued on its card, and a copy
        // between cards is on both.
        let copied = unsafe {
            if self.gpu.ordinal() == from.gpu.ordinal() {
                sys::cuMemcpyDtoDAsync_v2(to, source, bytes, stream)
            } else {
                sys::cuMemcpyPeerAsync(to, contexts.0, source, contexts.1, bytes, stream)
            }
        };
        copied.result().named("cuMemcpyAsync")
    }

    /// Copies from `at` to the machine, in order with the work of `gpu`, and waits.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, gpu: &Gpu, at: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        at_least("copy", "bytes of a region", self.bytes, at + bytes.len())?;
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let stream = gpu.stream().cu_stream();
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(bytes, self.address + at as u64, stream) }
            .named("cuMemcpyDtoHAsync")?;
        gpu.synchronize()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let context = self.gpu.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: allocated by `new`. Waits for whatever on this card still uses it.
        context.record_err(unsafe { result::free_sync(self.address) });
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

// === impl Mapped ===

impl Mapped {
    /// Maps the region of `handle`, as one of this card or over the link to its card.
    ///
    /// # Errors
    /// When it is this process's own, its process is gone, or the two cards do not reach each other.
    pub fn open(gpu: &Gpu, handle: &[u8; HANDLE_BYTES]) -> Result<Self, GpuError> {
        gpu.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
        let mut address = 0;
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        // SAFETY: a place for an address; the driver checks the handle.
        unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, flags) }
            .result()
            .named("cuIpcOpenMemHandle")?;
        let mut mapped = Self { gpu: gpu.clone(), address, bytes: 0 };
        let (mut begin, mut bytes) = (0, 0);
        // SAFETY: an address that was just mapped, and places for where its memory begins and its size.
        unsafe { sys::cuMemGetAddressRange_v2(&raw mut begin, &raw mut bytes, address) }
            .result()
            .named("cuMemGetAddressRange")?;
        mapped.bytes = bytes.saturating_sub((address - begin) as usize);
        Ok(mapped)
    }

    /// Where it begins, for this process and card.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size, by what the driver has mapped and not by what the other process says.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let context = self.gpu.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: mapped by `open`, once.
        context.record_err(unsafe { sys::cuIpcCloseMemHandle(self.address) }.result());
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").finish_non_exhaustive()
    }
}
