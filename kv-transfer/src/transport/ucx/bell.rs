//! What closes one end of a path from any thread.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use rustix::event::{EventfdFlags, eventfd};

/// Closes a worker's path from any thread and wakes the one that waits.
pub struct Bell {
    closed: AtomicBool,
    event: OwnedFd,
}

// === impl Bell ===

impl Bell {
    /// Not rung yet.
    ///
    /// # Errors
    /// When the system has no more files.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { closed: AtomicBool::new(false), event })
    }

    /// Closes the path.
    pub fn ring(&self) {
        self.closed.store(true, SeqCst);
        // It fails only when it is rung already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Whether it was rung.
    pub fn is_rung(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Readable from then on.
    pub fn event(&self) -> &OwnedFd {
        &self.event
    }
}
