//! How frames travel in one session: one direction, frame by frame, blocking.
//!
//! Receiver-placed: the sender says what a frame holds, the receiver where it
//! lands, or that it goes into the bit bucket. Every end lives on an OS thread
//! of its session and is woken by its [`Closer`].
//!
//! - [`offer`]: the seam of transports, and the table of those in this build
//! - [`inproc`], [`shm`], [`tcp`], `ucx` (feature `ucx`): transports
//! - `cuda_ipc`, `nccl` (feature `cuda`): from card to card; `card`: what both have
//! - [`faulty`], [`metered`]: decorators
//! - [`checksum`]: what guards payloads
//! - [`probe`]: the frames that measure a path
//! - [`socket`]: what `tcp` reads and writes, open or inside TLS

#[cfg(feature = "cuda")]
pub mod card;
pub mod checksum;
#[cfg(feature = "cuda")]
pub mod cuda_ipc;
pub mod faulty;
pub mod inproc;
pub mod metered;
#[cfg(feature = "cuda")]
pub mod nccl;
pub mod offer;
pub mod probe;
pub mod shm;
pub mod socket;
pub mod tcp;
#[cfg(test)]
pub mod tests;
#[cfg(feature = "ucx")]
pub mod ucx;

use std::{
    io::{self, IoSlice, IoSliceMut},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{FrameHeader, KvSink, KvSource, frame::FrameError};

pub use checksum::Checksum;

/// No frame is larger; a header that says otherwise ends the session.
pub const MAX_FRAME_BYTES: u32 = 64 << 20;

/// The sending end of a path.
pub trait FrameSender: Send {
    /// How many frames it is worth beginning with before they are sent.
    fn ahead(&self) -> usize {
        0
    }

    /// Begins with a frame that is sent after those begun before, if there is room.
    ///
    /// # Errors
    /// When the path is broken; what is wrong with the source shows later.
    fn begin(&mut self, _header: &FrameHeader, _source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        Ok(())
    }

    /// Checksum of a frame's payload, as the other end makes it of what arrives. Both
    /// sides agreed on `kind`; in place of crc32c a path may have one of its own.
    ///
    /// # Errors
    /// When the source does not cover the span.
    fn checksum(
        &mut self,
        kind: Checksum,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> io::Result<u32> {
        kind.of(&**source, &header.span)
    }

    /// Sends the span that `header` names, out of `source`. Returns when the
    /// bytes have left `source` or a guard of it travels with them.
    ///
    /// # Errors
    /// When the path is closed or broken; it cannot be used again.
    fn send(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError>;
}

/// The receiving end of a path.
pub trait FrameReceiver: Send {
    /// Waits for a frame, asks `place` where it lands, and lands it there.
    ///
    /// # Errors
    /// When the path is closed or broken; it cannot be used again.
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError>;
}

/// Where a frame goes.
pub enum Placement {
    /// Into these pages. The guard is held until the last byte is in.
    Land(Arc<dyn KvSink>),
    /// Into the bit bucket.
    Discard,
}

/// A frame that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its header.
    pub header: FrameHeader,
    /// Whether the payload has the header's checksum.
    pub intact: bool,
    /// From the header to the last byte.
    pub duration: Duration,
}

/// Why a path cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// One of the ends closed it.
    #[error("data path closed")]
    Closed,
    /// The system said so.
    #[error("data path broken: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no frame.
    #[error("not a frame: {0}")]
    Header(#[from] FrameError),
    /// A frame above [`MAX_FRAME_BYTES`].
    #[error("frame of {bytes} bytes")]
    TooLarge {
        /// As the header has it.
        bytes: u32,
    },
    /// It cannot be had on this machine, or its other end is not there.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// No progress inside a frame.
    #[error("data path stalled")]
    Stalled,
}

/// Closes a path from another thread and wakes both ends. Idempotent.
#[derive(Clone)]
pub struct Closer(Arc<dyn Fn() + Send + Sync>);

/// One end of a path with what closes it.
pub struct Link<E: ?Sized> {
    /// The end.
    pub end: Box<E>,
    /// Wakes it.
    pub closer: Closer,
}

// === impl PathError ===

#[cfg(feature = "cuda")]
impl PathError {
    fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            other => io::Error::other(other),
        }
    }
}

// === impl Closer ===

impl Closer {
    /// Calls `close` whenever closing is asked for.
    pub fn new(close: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(close))
    }

    /// Closes the path.
    pub fn close(&self) {
        (self.0)();
    }
}

/// Bytes of a frame's landing, in all pieces.
pub(crate) fn total(pieces: &[IoSliceMut<'_>]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

/// Refuses a placement whose memory has not the frame's size.
pub(crate) fn check_size(pieces: &[IoSliceMut<'_>], header: &FrameHeader) -> io::Result<()> {
    if total(pieces) == header.bytes as usize { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Copies pieces to pieces of other borders; both have the same size in all.
pub(crate) fn copy_pieces(from: &[IoSlice<'_>], to: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    if from.iter().map(|piece| piece.len()).sum::<usize>() != total(to) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut from = from.iter().map(|piece| &piece[..]);
    let mut rest: &[u8] = &[];
    for piece in to {
        let mut at = 0;
        while at < piece.len() {
            if rest.is_empty() {
                rest = from.next().ok_or(io::ErrorKind::InvalidInput)?;
            }
            let len = rest.len().min(piece.len() - at);
            piece[at..at + len].copy_from_slice(&rest[..len]);
            (rest, at) = (&rest[len..], at + len);
        }
    }
    Ok(())
}
