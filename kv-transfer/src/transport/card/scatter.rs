//! Frames to pages, out of staging that this card reaches.
#![expect(unsafe_code, reason = "copies to addresses that pages vouch for")]

use std::{io, sync::Arc};

use baton_kernels::cuda::{Gpu, PieceCopy, Pieces, Region};
use baton_protocol::{FrameHeader, KvSink};

use super::{Limits, copies, failed};
use crate::transport::{PathError, Placement, check_size, probe::PROBE};

/// Scatters frames on streams of its own, as many at once as there are slots.
pub struct Scatter {
    /// Streams that slots use in turn.
    lanes: Vec<Gpu>,
    /// Dropped before what they copy to and from: they wait for their launches.
    slots: Vec<Slot>,
    /// Where frames go that nobody wants.
    scratch: Region,
    limits: Limits,
}

struct Slot {
    pieces: Pieces,
    /// Keeps the pages while they are written.
    sink: Option<Arc<dyn KvSink>>,
    landing: Landing,
    /// On its way to the machine's memory; made when it is needed.
    bounce: Option<Region>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Landing {
    /// Into pages on this card, or into scratch because nobody wants it.
    Card,
    /// Into pages of the machine's memory.
    Host,
    /// Into scratch, because there are no such pages.
    Nowhere,
}

// === impl Scatter ===

impl Scatter {
    /// Nothing under way, on so many streams.
    ///
    /// # Errors
    /// When the card has no room for scratch memory.
    pub fn new(gpu: &Gpu, limits: &Limits, lanes: usize) -> Result<Self, PathError> {
        let lanes = super::lanes(gpu, lanes)?;
        let slot = |slot: usize| {
            let pieces = Pieces::new(&lanes[slot % lanes.len()]).map_err(failed)?;
            Ok(Slot { pieces, sink: None, landing: Landing::Nowhere, bounce: None })
        };
        let slots = (0..limits.slots).map(slot).collect::<Result<_, PathError>>()?;
        let scratch = Region::new(gpu, limits.slot_bytes).map_err(failed)?;
        Ok(Self { lanes, slots, scratch, limits: limits.clone() })
    }

    /// The stream that a slot's frames are scattered on.
    pub fn lane(&self, slot: usize) -> &Gpu {
        &self.lanes[slot % self.lanes.len()]
    }

    /// Enqueues scattering the frame that lies at `frame`. Pages are kept until
    /// [`finish`](Self::finish). The caller has checked the frame's size.
    ///
    /// # Errors
    /// When the card failed.
    pub fn scatter(
        &mut self,
        slot: usize,
        (frame, header): (u64, &FrameHeader),
        placement: Placement,
    ) -> Result<(), PathError> {
        let Self { lanes, slots, scratch, limits } = self;
        let gpu = &lanes[slot % lanes.len()];
        let Slot { pieces: list, sink: held, landing, bounce } = &mut slots[slot];
        let whole = |to| vec![PieceCopy { from: frame, to, bytes: header.bytes.into() }];
        let sink = match placement {
            // A probe measures what pages on the card would take.
            Placement::Land(sink) if header.handoff != PROBE => Some(sink),
            _ => None,
        };
        // Without such memory the frame still has to leave its slot.
        let (pieces, to) = match sink.as_ref().map(|sink| sink.on_device(&header.span)) {
            None => (whole(scratch.address()), Landing::Card),
            Some(Err(_)) => (whole(scratch.address()), Landing::Nowhere),
            Some(Ok(Some(span))) => {
                let place = (frame, header.bytes);
                match copies((&span, gpu.ordinal()), place, |page, at| (at, page)) {
                    Some(to_pages) => (to_pages, Landing::Card),
                    None => (whole(scratch.address()), Landing::Nowhere),
                }
            }
            Some(Ok(None)) => {
                let bounce = match bounce {
                    Some(bounce) => bounce,
                    None => bounce.insert(Region::new(gpu, limits.slot_bytes).map_err(failed)?),
                };
                (whole(bounce.address()), Landing::Host)
            }
        };
        (*held, *landing) = (sink, to);
        // SAFETY: the pages are kept by the sink, scratch by this; the frame's slot is this end's
        // until it is given back.
        unsafe { list.copy(gpu, &pieces, limits.checked) }.map_err(failed)
    }

    /// Whether a slot's frame has left its place.
    pub fn is_done(&self, slot: usize) -> bool {
        self.slots[slot].pieces.is_done()
    }

    /// Waits until a slot's frame has landed and lets its pages go; its checksum, and whether it
    /// landed with the one that was `told`.
    ///
    /// # Errors
    /// When the card failed.
    pub fn finish(&mut self, slot: usize, header: &FrameHeader, told: u32) -> Result<(u32, bool), PathError> {
        let check = self.slots[slot].pieces.finish().map_err(failed)?;
        let sink = self.slots[slot].sink.take();
        let placed = match (self.slots[slot].landing, sink) {
            (Landing::Host, Some(sink)) => self.download(slot, header, &*sink)?,
            (landing, _) => landing == Landing::Card,
        };
        let intact = placed && (!self.limits.checked || check == told);
        if !intact {
            let FrameHeader { handoff, seq, span, .. } = header;
            tracing::debug!(%handoff, seq, ?span, placed, told, found = check, "no landing, or another checksum");
        }
        Ok((check, intact))
    }

    /// Whether there are such pages in the machine's memory.
    fn download(&self, slot: usize, header: &FrameHeader, sink: &dyn KvSink) -> Result<bool, PathError> {
        let Some(bounce) = &self.slots[slot].bounce else { return Ok(false) };
        let mut started = false;
        let landed = sink.write(&header.span, &mut |slices| {
            check_size(slices, header)?;
            started = true;
            let mut at = 0;
            slices.iter_mut().try_for_each(|slice| {
                bounce.read(self.lane(slot), at, slice).map_err(io::Error::other)?;
                at += slice.len();
                Ok(())
            })
        });
        match landed {
            Err(error) if started => Err(error.into()),
            landed => Ok(landed.is_ok()),
        }
    }
}
