//! The plainest way through memory that two processes see: one copies in, the
//! other out, and neither sleeps. No checksum, no frames, no end of a peer.

use std::{
    fs::OpenOptions,
    hint::spin_loop,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::Ordering::{Acquire, Release},
};

use anyhow::Result;
use baton_kv_transfer::transport::shm::map::{self, DATA_BYTES, Map};

/// Bytes after which the other side is told.
const STEP: usize = 32 << 10;

/// Words of the two positions.
const IN: usize = 0;
const OUT: usize = 1;

/// One end.
pub struct Shared {
    map: Map,
    /// Bytes so far; it wraps.
    at: u32,
}

// === impl Shared ===

impl Shared {
    /// Memory for both, and the path under which the other process finds it while the file is open.
    ///
    /// # Errors
    /// When the system has no more.
    pub fn create() -> Result<(Self, OwnedFd, String)> {
        let file = map::create()?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Ok((Self { map: Map::new(&file)?, at: 0 }, file, path))
    }

    /// The other end.
    ///
    /// # Errors
    /// When there is none at `path`.
    pub fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { map: Map::new(file)?, at: 0 })
    }

    /// Copies in, waiting for room.
    pub fn write(&mut self, bytes: &[u8]) {
        for step in bytes.chunks(STEP) {
            self.until(OUT, |held| DATA_BYTES - held as usize >= step.len());
            self.map.copy_in(self.at as usize % DATA_BYTES, step);
            self.advance(IN, step.len());
        }
    }

    /// Copies out, waiting for it.
    pub fn read(&mut self, bytes: &mut [u8]) {
        for step in bytes.chunks_mut(STEP) {
            let size = step.len();
            self.until(IN, |held| held.wrapping_neg() as usize >= size);
            self.map.copy_out(self.at as usize % DATA_BYTES, step);
            self.advance(OUT, size);
        }
    }

    /// Waits until everything written was read.
    pub fn drained(&self) {
        self.until(OUT, |held| held == 0);
    }

    fn advance(&mut self, word: usize, bytes: usize) {
        self.at = self.at.wrapping_add(bytes as u32);
        self.map.word(word).store(self.at, Release);
    }

    /// Looks until our place less theirs is as it should be.
    fn until(&self, word: usize, fine: impl Fn(u32) -> bool) {
        while !fine(self.at.wrapping_sub(self.map.word(word).load(Acquire))) {
            spin_loop();
        }
    }
}
