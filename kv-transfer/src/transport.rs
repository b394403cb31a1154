//! How frames travel in one session: one direction, frame by frame, blocking.
//!
//! Receiver-placed: the sender says what a frame holds, the receiver where it
//! lands, or that it goes into the bit bucket. Every end lives on an OS thread
//! of its session and is woken by its [`Closer`].
//!
//! - [`inproc`], [`tcp`]: transports
//! - [`faulty`], [`metered`]: decorators
//! - [`socket`]: what `tcp` reads and writes, open or inside TLS
//! - [`probe`]: the frame that measures a path

pub mod faulty;
pub mod inproc;
pub mod metered;
pub mod probe;
pub mod socket;
pub mod tcp;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice, IoSliceMut},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{FrameHeader, KvSink, KvSource, KvSpan, frame::FrameError};

/// No frame is larger; a header that says otherwise ends the session.
pub const MAX_FRAME_BYTES: u32 = 64 << 20;

/// The sending end of a path.
pub trait FrameSender: Send {
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

/// Running crc32c of a payload.
pub(crate) struct Crc(crc_fast::Digest);

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

// === impl Crc ===

impl Crc {
    pub(crate) fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> u32 {
        // The algorithm has 32 bits; the crate's result type serves 64-bit ones too.
        (self.0.finalize() & 0xffff_ffff) as u32
    }
}

/// crc32c of a span in memory.
///
/// # Errors
/// When the source does not cover the span.
pub fn checksum(source: &dyn KvSource, span: &KvSpan) -> io::Result<u32> {
    let mut crc = Crc::new();
    source.read(span, &mut |pieces| {
        pieces.iter().for_each(|piece| crc.update(piece));
        Ok(())
    })?;
    Ok(crc.value())
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
