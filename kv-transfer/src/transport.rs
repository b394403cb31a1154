//! How frames travel in one session: one direction, frame by frame, blocking.
//!
//! Receiver-placed: the sender says what a frame holds, the receiver where it
//! lands, or that it goes into the bit bucket. Every end lives on an OS thread
//! of its session and is woken by its [`Closer`], except for ends that never
//! wait, which are asked again and again ([`FrameSender::asked_every`]): a
//! simulation has those, since threads take turns as they like.
//!
//! - [`offer`]: the seam of transports, and the table of those in this build
//! - [`inproc`], [`shm`], [`tcp`], `ucx` (feature `ucx`): transports
//! - `cuda_ipc`, `nccl` (feature `cuda`): from card to card; `card`: what both have
//! - [`faulty`], [`metered`]: decorators
//! - [`caller`]: who comes to a path's own address
//! - [`checksum`]: what guards payloads
//! - [`probe`]: the frames that measure a path
//! - [`socket`]: what `tcp` reads and writes, open or inside TLS

pub mod caller;
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
    time::{Duration, Instant},
};

use baton_protocol::{
    FrameHeader, KvSink, KvSource,
    frame::{FrameError, HEADER_BYTES},
};

pub use checksum::Checksum;

/// No frame is larger; a header that says otherwise ends the session.
pub const MAX_FRAME_BYTES: u32 = 64 << 20;

/// The sending end of a path.
pub trait FrameSender: Send {
    /// None where it waits, on a thread. An end that never waits says how often it is to be
    /// asked whether there is something to send.
    fn asked_every(&self) -> Option<Duration> {
        None
    }

    /// How many frames it is worth beginning with before they are sent.
    fn ahead(&self) -> usize {
        0
    }

    /// Begins with a frame that is sent after those begun before, if there is room. To be followed
    /// by its `send`: what was sent before may wait for it.
    ///
    /// # Errors
    /// When the path is broken; what is wrong with the source shows later.
    fn begin(&mut self, _header: &FrameHeader, _source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        Ok(())
    }

    /// Sends the span that `header` names, out of `source`, and tells its checksum, which is
    /// made on the way; or `told` in its place. Returns what was told, when the bytes have left
    /// `source` or a guard of it travels with them.
    ///
    /// # Errors
    /// [`PathError::Unreadable`] when the source does not cover the span: nothing was sent, and
    /// the path goes on. Else it is closed or broken, and cannot be used again.
    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError>;

    /// What `send` would tell of a frame, where both sides agreed on `kind`; in place of crc32c
    /// a path may have a checksum of its own.
    ///
    /// # Errors
    /// As `send`.
    fn checksum(
        &mut self,
        kind: Checksum,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<u32, PathError> {
        kind.of(&**source, &header.span).map_err(PathError::Unreadable)
    }
}

/// The receiving end of a path.
pub trait FrameReceiver: Send {
    /// As of [`FrameSender`]. Such an end answers [`PathError::NotYet`] while no frame is there.
    fn asked_every(&self) -> Option<Duration> {
        None
    }

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
    /// Checksum of what arrived.
    pub crc: u32,
    /// Whether it is the one that was told, and has landed.
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
    /// The source does not cover the frame. Nothing of it was sent.
    #[error("pages cannot be read: {0}")]
    Unreadable(#[source] io::Error),
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
    /// An end that does not wait has nothing to do now.
    #[error("nothing yet")]
    NotYet,
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

/// Reads a header whose frame any path may carry.
pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, PathError> {
    let header = FrameHeader::decode(bytes)?;
    if header.bytes > MAX_FRAME_BYTES {
        return Err(PathError::TooLarge { bytes: header.bytes });
    }
    Ok(header)
}

/// Gives `send` the pieces of a frame; what came of it.
pub(crate) fn read_pieces<T>(
    header: &FrameHeader,
    source: &dyn KvSource,
    mut send: impl FnMut(&[IoSlice<'_>]) -> Result<T, PathError>,
) -> Result<T, PathError> {
    let mut sent = None;
    let read = source.read(&header.span, &mut |pieces| {
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() != header.bytes as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sent = Some(send(pieces));
        Ok(())
    });
    match sent {
        Some(sent) => read.map_err(PathError::Io).and(sent),
        None => Err(PathError::Unreadable(read.err().unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))),
    }
}

/// Has `take` fill the pieces where a frame lands, or let its payload go where there are none.
/// It says what the checksum of the payload is, and which one was told.
pub(crate) fn land(
    header: FrameHeader,
    place: &mut dyn FnMut(&FrameHeader) -> Placement,
    mut take: impl FnMut(Option<&mut [IoSliceMut<'_>]>) -> Result<(u32, u32), PathError>,
) -> Result<Received, PathError> {
    let begun = Instant::now();
    let (mut taken, mut whole) = (None, true);
    if let Placement::Land(sink) = place(&header) {
        let landed = sink.write(&header.span, &mut |pieces| {
            check_size(pieces, &header)?;
            taken = Some(take(Some(pieces)));
            Ok(())
        });
        whole = landed.is_ok();
    }
    // The bit bucket, or a sink without such memory: the payload must still leave the path.
    let (crc, told) = taken.unwrap_or_else(|| take(None))?;
    Ok(Received { header, crc, intact: whole && crc == told, duration: begun.elapsed() })
}

/// Refuses a placement whose memory has not the frame's size.
pub(crate) fn check_size(pieces: &[IoSliceMut<'_>], header: &FrameHeader) -> io::Result<()> {
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    if bytes == header.bytes as usize { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
