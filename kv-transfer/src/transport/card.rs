//! What the roads from card to card have in common: a session's staging on its
//! own card, by which pages are never shared, and signals beside the data.
//!
//! A frame's checksum here is [`check_word`](baton_kernels::reference::check_word), made by the
//! kernels that copy it: crc32c would take them longer than copying. A frame of
//! pages in the machine's memory is taken too, by a copy to or from the card.
//!
//! - [`gather`]: pages to frames
//! - [`scatter`]: frames to pages
//! - [`signals`]: headers and answers over a socket
//! - [`meet`]: how two ends find each other

pub mod gather;
pub mod meet;
pub mod scatter;
pub mod signals;
#[cfg(test)]
mod tests;

use std::time::Duration;

use baton_kernels::cuda::{Gpu, GpuError, PieceCopy};
use baton_protocol::DeviceSpan;

use super::PathError;

/// What a session allows on its path.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest frame.
    pub slot_bytes: usize,
    /// Frames in staging at once.
    pub slots: usize,
    /// Time without progress after which the path is broken.
    pub stall: Duration,
    /// Whether frames carry checksums.
    pub checked: bool,
}

/// Streams of a session's own, not ordered with any other; at least one.
fn lanes(gpu: &Gpu, count: usize) -> Result<Vec<Gpu>, PathError> {
    let lane = |_| Ok(gpu.beside().map_err(failed)?.overlapping(false));
    (0..count.max(1)).map(lane).collect()
}

/// A card that fails breaks the path.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn failed(error: GpuError) -> PathError {
    PathError::Io(std::io::Error::other(error.to_string()))
}

/// The frame at `frame` from or to pages, the way `turn` says; none if pages
/// have another size or lie on another card.
fn copies(
    (span, device): (&DeviceSpan, usize),
    (frame, bytes): (u64, u32),
    turn: fn(u64, u64) -> (u64, u64),
) -> Option<Vec<PieceCopy>> {
    let total: u64 = span.pieces.iter().map(|(_, bytes)| bytes).sum();
    if total != u64::from(bytes) || span.device != device {
        return None;
    }
    let mut at = frame;
    let copy = |&(page, bytes): &(u64, u64)| {
        let (from, to) = turn(page, at);
        at += bytes;
        PieceCopy { from, to, bytes }
    };
    Some(span.pieces.iter().map(copy).collect())
}
