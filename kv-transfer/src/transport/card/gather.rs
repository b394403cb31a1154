//! Pages to frames, in slots of the session's own device memory.
#![expect(unsafe_code, reason = "copies from addresses that pages vouch for")]

use std::{io, sync::Arc};

use baton_kernels::cuda::{Gpu, PieceCopy, Pieces, Region};
use baton_protocol::{FrameHeader, KvSource};

use super::{Limits, copies, failed};
use crate::transport::{PathError, probe::PROBE, read_pieces};

/// Slots that frames are gathered into, on streams of their own.
pub struct Gather {
    /// Streams that slots use in turn: one frame's last blocks run beside the next one's first.
    lanes: Vec<Gpu>,
    /// Dropped before what they copy to and from: they wait for their launches.
    slots: Vec<Slot>,
    region: Region,
    limits: Limits,
}

struct Slot {
    pieces: Pieces,
    /// Keeps the pages while they are read.
    source: Option<Arc<dyn KvSource>>,
}

// === impl Gather ===

impl Gather {
    /// As many slots as `limits` say, and one more for frames that are only looked at, on so
    /// many streams.
    ///
    /// # Errors
    /// When the card has no room for them.
    pub fn new(gpu: &Gpu, limits: &Limits, lanes: usize) -> Result<Self, PathError> {
        let lanes = super::lanes(gpu, lanes)?;
        let slot = |slot: usize| {
            let pieces = Pieces::new(&lanes[slot % lanes.len()]).map_err(failed)?;
            Ok(Slot { pieces, source: None })
        };
        let slots = (0..=limits.slots).map(slot).collect::<Result<_, PathError>>()?;
        let region = Region::new(gpu, (limits.slots + 1) * limits.slot_bytes).map_err(failed)?;
        Ok(Self { lanes, slots, region, limits: limits.clone() })
    }

    /// The stream that a slot's frames are gathered on.
    pub fn lane(&self, slot: usize) -> &Gpu {
        &self.lanes[slot % self.lanes.len()]
    }

    /// All slots, one after the other.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The slot that is nobody's.
    pub fn spare(&self) -> usize {
        self.limits.slots
    }

    /// Where a slot begins in the region.
    pub fn offset(&self, slot: usize) -> usize {
        slot * self.limits.slot_bytes
    }

    /// Enqueues gathering a frame. Its pages are kept until [`finish`](Self::finish).
    ///
    /// # Errors
    /// When the frame does not fit, the source does not cover it ([`PathError::Unreadable`]), or the
    /// card failed.
    pub fn gather(
        &mut self,
        slot: usize,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<(), PathError> {
        if header.bytes as usize > self.limits.slot_bytes {
            return Err(PathError::TooLarge { bytes: header.bytes });
        }
        let frame = self.region.address() + self.offset(slot) as u64;
        let whole = PieceCopy { from: frame, to: frame, bytes: u64::from(header.bytes) };
        // A probe measures what pages on the card would take: a frame is read and written there.
        let span = if header.handoff == PROBE {
            None
        } else {
            source.on_device(&header.span).map_err(PathError::Unreadable)?
        };
        let pieces = match span {
            Some(span) => {
                copies((&span, self.lane(slot).ordinal()), (frame, header.bytes), |page, at| (page, at))
                    .ok_or_else(|| PathError::Unreadable(io::ErrorKind::InvalidInput.into()))?
            }
            None if header.handoff == PROBE => vec![whole],
            None => {
                self.upload(slot, header, &**source)?;
                vec![whole]
            }
        };
        let Self { lanes, slots, limits, .. } = self;
        let gpu = &lanes[slot % lanes.len()];
        let Slot { pieces: list, source: held } = &mut slots[slot];
        *held = Some(source.clone());
        // SAFETY: the pages are kept by the source, the slot by this; the caller leaves it alone until
        // it is free.
        unsafe { list.copy(gpu, &pieces, limits.checked) }.map_err(failed)
    }

    /// Pages of the machine's memory.
    fn upload(&mut self, slot: usize, header: &FrameHeader, source: &dyn KvSource) -> Result<(), PathError> {
        let mut at = self.offset(slot);
        let Self { lanes, region, .. } = self;
        let gpu = &lanes[slot % lanes.len()];
        read_pieces(header, source, |pieces| {
            pieces.iter().try_for_each(|piece| {
                region.write(gpu, at, piece).map_err(failed)?;
                at += piece.len();
                Ok(())
            })
        })
    }

    /// Whether a slot's frame is complete.
    pub fn is_done(&self, slot: usize) -> bool {
        self.slots[slot].pieces.is_done()
    }

    /// Waits until a slot's frame is complete and lets its pages go; its checksum.
    ///
    /// # Errors
    /// When the card failed.
    pub fn finish(&mut self, slot: usize) -> Result<u32, PathError> {
        let slot = &mut self.slots[slot];
        let check = slot.pieces.finish().map_err(failed)?;
        slot.source = None;
        Ok(check)
    }
}
