#![expect(unsafe_code, reason = "memory that another process writes has no safe form")]
//! A mapping of the memory that two processes share. The other process may
//! write anything at any time: bytes are only ever copied in or out, and words
//! are atomics.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr::{NonNull, copy_nonoverlapping, null_mut},
    sync::atomic::AtomicU32,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// Bytes of a mapping: the words, then the data.
pub const MAP_BYTES: usize = WORDS_BYTES + DATA_BYTES;

/// Bytes of data, a power of two: little enough to stay in a core's cache.
pub const DATA_BYTES: usize = 512 << 10;

/// Bytes of a cache line. Only whole ones go past the caches: the rest of one is fetched first.
pub const LINE: usize = 64;

/// How far ahead of a copy past the caches its source is fetched: the processor by itself stops at
/// the end of a page.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 12 * LINE;

/// The words lie a cache line apart (two: neighbours are fetched together).
const WORDS_BYTES: usize = 4096;
const WORD_STRIDE: usize = 128;

/// A shared mapping of [`MAP_BYTES`] bytes.
pub struct Map(NonNull<u8>);

// SAFETY: the mapping belongs to the value until it is dropped, is not tied to
// a thread, and is touched through atomics and copies alone.
unsafe impl Send for Map {}
// SAFETY: as above; two threads that copy the same bytes at once would be the
// same data race that the other process can cause, which copies tolerate.
unsafe impl Sync for Map {}

/// Memory for one ring, zeroed, whose size nobody can change any more.
///
/// # Errors
/// When the system has no more.
pub fn create() -> io::Result<OwnedFd> {
    let fd = memfd_create("baton-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, MAP_BYTES as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

// === impl Map ===

impl Map {
    /// Maps a ring's memory, wherever it came from.
    ///
    /// # Errors
    /// When it is not of that size, or its maker could still shrink it under us.
    pub fn new(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let sized = u64::try_from(fstat(fd)?.st_size).is_ok_and(|size| size == MAP_BYTES as u64);
        if !sized || !fcntl_get_seals(fd)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a ring's memory"));
        }
        // SAFETY: a fresh mapping at an address of the system's choice.
        let base = unsafe {
            mmap(null_mut(), MAP_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        }?;
        NonNull::new(base.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// One of the words.
    ///
    /// # Panics
    /// When there is no such word.
    pub fn word(&self, index: usize) -> &AtomicU32 {
        let at = index * WORD_STRIDE;
        assert!(at + size_of::<AtomicU32>() <= WORDS_BYTES, "no word {index}");
        // SAFETY: within the mapping, aligned by the stride, and only ever used as an atomic.
        unsafe { self.0.add(at).cast().as_ref() }
    }

    /// Copies into the data at `at`.
    ///
    /// # Panics
    /// When that is not within the data.
    pub fn copy_in(&self, at: usize, from: &[u8]) {
        assert!(at <= DATA_BYTES && from.len() <= DATA_BYTES - at, "{} bytes at {at}", from.len());
        // SAFETY: in bounds by the assertion; shared memory never overlaps a slice of this process.
        unsafe { copy_nonoverlapping(from.as_ptr(), self.0.add(WORDS_BYTES + at).as_ptr(), from.len()) };
    }

    /// As [`copy_in`](Self::copy_in), but past the caches: others may see the bytes later than what
    /// is stored after them, until [`settle`](Self::settle).
    ///
    /// # Panics
    /// When that is not within the data.
    pub fn stream_in(&self, at: usize, from: &[u8]) {
        assert!(at <= DATA_BYTES && from.len() <= DATA_BYTES - at, "{} bytes at {at}", from.len());
        // SAFETY: as above.
        unsafe { stream(from.as_ptr(), self.0.add(WORDS_BYTES + at).as_ptr(), from.len()) };
    }

    /// Keeps everything streamed in so far before whatever is stored from now on.
    pub fn settle(&self) {
        settle();
    }

    /// Copies out of the data at `at`.
    ///
    /// # Panics
    /// When that is not within the data.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) {
        assert!(at <= DATA_BYTES && to.len() <= DATA_BYTES - at, "{} bytes at {at}", to.len());
        // SAFETY: as above.
        unsafe { copy_nonoverlapping(self.0.add(WORDS_BYTES + at).as_ptr(), to.as_mut_ptr(), to.len()) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; nobody borrows it any more.
        if let Err(error) = unsafe { munmap(self.0.as_ptr().cast(), MAP_BYTES) } {
            tracing::error!(%error, "cannot unmap a ring");
        }
    }
}

/// Copies past the caches.
///
/// # Safety
/// As for `copy_nonoverlapping`.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_stream_si128};
    let head = to.align_offset(LINE).min(bytes);
    let body = bytes - (bytes - head) % LINE;
    // SAFETY: head, lines and tail are the bytes that the caller vouches for, and lines are aligned.
    unsafe {
        copy_nonoverlapping(from, to, head);
        for at in (head..body).step_by(LINE) {
            // A hint: behind the end there may be nothing.
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at + AHEAD).cast());
            let (from, to) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
            let line = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
            line.into_iter().enumerate().for_each(|(part, value)| _mm_stream_si128(to.add(part), value));
        }
        copy_nonoverlapping(from.add(body), to.add(body), bytes - body);
    }
}

/// Stores past the caches keep no order by themselves.
#[cfg(target_arch = "x86_64")]
fn settle() {
    // SAFETY: every x86-64 has it.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Copies: elsewhere there is no stable way past the caches.
///
/// # Safety
/// As for `copy_nonoverlapping`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: by the caller's promise.
    unsafe { copy_nonoverlapping(from, to, bytes) };
}

/// The copies above are stores like any other.
#[cfg(not(target_arch = "x86_64"))]
fn settle() {}
