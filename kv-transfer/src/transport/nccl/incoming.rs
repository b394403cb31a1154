//! Frames that arrive: received into staging together with others that were announced, scattered one by one.

use std::{
    collections::VecDeque,
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use baton_kernels::cuda::{Gpu, Mark, Nccl, Region, nccl::Pair};
use baton_protocol::{FrameHeader, frame::HEADER_BYTES};

use super::{
    super::{
        FrameReceiver, Link, PathError, Placement, Received,
        card::{Limits, failed, scatter::Scatter, signals::Signals},
    },
    FRAME_BYTES, ID_BYTES, INVITATION_BYTES, POSTED,
    joined::{deadline, join, marks, signals, wait},
};

/// How long announcements are looked out for while the oldest frame lands.
const LAND: Duration = Duration::from_micros(500);

struct Receiver {
    /// As with the sender.
    pair: Pair,
    signals: Signals,
    scatter: Scatter,
    staging: Region,
    limits: Limits,
    next: usize,
    /// Where NCCL's stream has filled the slots of the launch that a slot was the first of.
    filled: Vec<Mark>,
    /// Frames being received, oldest first.
    landing: VecDeque<Landing>,
    /// How many of them, the oldest, go on to pages; the launch of the others may not be enqueued yet.
    scattered: usize,
}

struct Landing {
    header: FrameHeader,
    told: u32,
    slot: usize,
    begun: Instant,
}

/// The receiving end: joins the sender at the other end of `socket` within `limit`.
///
/// # Errors
/// As [`sender`](super::sender).
pub fn receiver(
    gpu: &Gpu,
    socket: TcpStream,
    (limits, limit): (&Limits, Duration),
) -> Result<Link<dyn FrameReceiver>, PathError> {
    let nccl = Nccl::load().map_err(failed)?;
    let mut signals = signals(socket, limits)?;
    let (limits, id) = invited(&signals.wait(false)?, limits)?;
    let scatter = Scatter::new(gpu, &limits, limits.slots)?;
    let staging = Region::new(gpu, limits.slots * limits.slot_bytes).map_err(failed)?;
    let pair = join(nccl, gpu, (&id, true), (&signals, limit))?;
    let closer = signals.closer(Shutdown::Both)?;
    let (filled, landing) = (marks(gpu, limits.slots)?, VecDeque::new());
    let receiver =
        Receiver { pair, signals, scatter, staging, limits, next: 0, filled, landing, scattered: 0 };
    Ok(Link { end: Box::new(receiver), closer })
}

/// Staging for the sender's largest frame, no larger than this node's own, and the name to join by.
pub fn invited(
    invitation: &[u8; INVITATION_BYTES],
    mine: &Limits,
) -> Result<(Limits, [u8; ID_BYTES]), PathError> {
    let (mut id, mut slot_bytes) = ([0; ID_BYTES], [0; 8]);
    id.copy_from_slice(&invitation[..ID_BYTES]);
    slot_bytes.copy_from_slice(&invitation[ID_BYTES..]);
    let slot_bytes = u64::from_le_bytes(slot_bytes);
    let most = mine.slot_bytes;
    if !(1..=most as u64).contains(&slot_bytes) {
        let reason = format!(
            "frames of up to {slot_bytes} bytes, here {most}: transfer.frame_bytes may not be larger on the prefill node"
        );
        return Err(PathError::Unavailable { reason });
    }
    Ok((Limits { slot_bytes: slot_bytes as usize, ..mine.clone() }, id))
}

/// A frame that was announced and its checksum, within what staging has room for.
pub fn frame_of(message: &[u8; FRAME_BYTES], staging: &Limits) -> Result<(FrameHeader, u32), PathError> {
    let (mut head, mut told) = ([0; HEADER_BYTES], [0; 4]);
    head.copy_from_slice(&message[..HEADER_BYTES]);
    told.copy_from_slice(&message[HEADER_BYTES..]);
    let header = FrameHeader::decode(&head)?;
    if header.bytes as usize > staging.slot_bytes {
        return Err(PathError::TooLarge { bytes: header.bytes });
    }
    Ok((header, u32::from_le_bytes(told)))
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        if self.landing.is_empty() {
            let head = self.signals.wait(true)?;
            self.land(head, place)?;
        }
        // Whatever else is announced until the oldest has landed is received meanwhile. Where it has, others
        // are better left to gather: a launch costs the same for one as for eight.
        let begun = Instant::now();
        while !self.has_landed() && begun.elapsed() < LAND {
            self.scatter(place, false)?;
            if self.has_room()
                && let Some(head) = self.signals.poll()?
            {
                self.land(head, place)?;
            }
        }
        if self.scattered == 0 {
            self.scatter(place, true)?;
        }
        self.scattered -= 1;
        let Some(Landing { header, told, slot, begun }) = self.landing.pop_front() else {
            return Err(PathError::Closed);
        };
        wait(&self.pair, &mut self.signals, &|| self.scatter.is_done(slot))?;
        let (crc, intact) = self.scatter.finish(slot, &header, told)?;
        Ok(Received { header, crc, intact, duration: begun.elapsed() })
    }
}

impl Receiver {
    /// Whether the oldest frame has.
    fn has_landed(&self) -> bool {
        self.scattered > 0 && self.landing.front().is_none_or(|oldest| self.scatter.is_done(oldest.slot))
    }

    /// Whether one more may be received.
    fn has_room(&self) -> bool {
        self.landing.len() < self.limits.slots
    }

    /// Receives a frame that was announced, and in the same launch those announced behind it.
    fn land(
        &mut self,
        message: [u8; FRAME_BYTES],
        place: &mut dyn FnMut(&FrameHeader) -> Placement,
    ) -> Result<(), PathError> {
        self.scatter(place, true)?;
        let mut parts = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            let (header, told) = frame_of(&message, &self.limits)?;
            let slot = self.next;
            self.next = (slot + 1) % self.limits.slots;
            parts.push((slot * self.limits.slot_bytes, header.bytes as usize));
            self.landing.push_back(Landing { header, told, slot, begun: Instant::now() });
            next = if self.has_room() { self.signals.poll()? } else { None };
        }
        self.signals.send(&vec![POSTED; parts.len()])?;
        let Self { pair, signals, staging, .. } = self;
        pair.recv(staging, &parts, &deadline(signals)).map_err(failed)
    }

    /// Has frames go on to pages behind the launch that receives them, once it is enqueued.
    fn scatter(
        &mut self,
        place: &mut dyn FnMut(&FrameHeader) -> Placement,
        waits: bool,
    ) -> Result<(), PathError> {
        let Self { pair, signals, staging, scatter, limits, filled, landing, scattered, .. } = self;
        if waits {
            pair.settle(&deadline(signals)).map_err(failed)?;
        } else if *scattered == landing.len() || !pair.is_settled().map_err(failed)? {
            return Ok(());
        }
        let Some(launch) = landing.get(*scattered).map(|oldest| &filled[oldest.slot]) else { return Ok(()) };
        pair.mark(launch).map_err(failed)?;
        for Landing { slot, header, .. } in landing.range(*scattered..) {
            let frame = staging.address() + (slot * limits.slot_bytes) as u64;
            launch.awaited(scatter.lane(*slot)).map_err(failed)?;
            scatter.scatter(*slot, (frame, header), place(header))?;
        }
        *scattered = landing.len();
        Ok(())
    }
}
