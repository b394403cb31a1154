//! Two processes of one host and their cards' memory: the receiver maps the
//! sender's ring, and frames never leave device memory.
//!
//! The sender gathers a frame into a slot of its ring, waits for that, and tells
//! header and slot over a socket; the receiver scatters it into its pages and gives
//! the slot back. Nothing on a card ever waits for the other process, so a peer that
//! dies leaves no stuck stream behind. The ring is the session's: pages are not
//! shared, and its memory goes when both ends have let go.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use baton_kernels::cuda::{Gpu, Mapped, region::HANDLE_BYTES};
use baton_protocol::{FrameHeader, HandoffId, KvSource, frame::HEADER_BYTES};
use baton_trust::Trust;

use super::{
    Checksum, FrameReceiver, FrameSender, Link, PathError, Placement, Received,
    caller::{caller, of_this_user},
    card::{
        Limits, failed,
        gather::Gather,
        meet::{card, limits, made},
        scatter::Scatter,
        signals::Signals,
    },
    offer::{Rendezvous, Terms, Transport},
    shm::meet::place,
};
use crate::{SessionError, TransferConfig, TransportKind, hex, metrics::Side};

/// What the sender tells first: magic, slots, bytes of a slot, process, handle.
const EXPORT_BYTES: usize = 96;
const EXPORT_MAGIC: [u8; 4] = *b"BTNi";

/// A header, the slot that the frame is in, and its checksum.
const FRAME_BYTES: usize = HEADER_BYTES + 8;

/// How long a sender keeps its ring for a receiver that still maps it.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the oldest frame is looked at before its end is slept for.
const SPIN: Duration = Duration::from_micros(100);

/// Slots of a ring, each with a stream of its own.
const SLOTS: usize = 16;

/// Most slots of a ring.
const MAX_SLOTS: u32 = 64;

/// Tells this process from every other one: it cannot map its own memory.
static PROCESS: LazyLock<[u8; 16]> = LazyLock::new(|| {
    let mut name = [0; 16];
    name.copy_from_slice(&crate::session::secret()[..16]);
    name
});

/// A card whose memory processes of this host may share.
struct CudaIpc {
    gpu: Gpu,
}

/// A path whose receiver has not come yet.
struct Waiting {
    listener: UnixListener,
    gpu: Gpu,
    terms: Terms,
}

struct Sender {
    signals: Signals,
    gather: Gather,
    slots: usize,
    /// Slots that hold nothing.
    free: Vec<usize>,
    /// Frames being gathered, oldest first.
    begun: VecDeque<Begun>,
    /// Slots that the receiver has.
    lent: Vec<usize>,
}

struct Begun {
    handoff: HandoffId,
    seq: u32,
    slot: usize,
}

struct Receiver {
    /// Dropped first: waits for what still reads the ring.
    scatter: Scatter,
    ring: Mapped,
    /// Dropped after the ring: its end tells the sender that nobody maps it any more.
    signals: Signals,
    limits: Limits,
    /// Frames being scattered, oldest first.
    landing: VecDeque<Landing>,
}

struct Landing {
    header: FrameHeader,
    told: u32,
    slot: usize,
    begun: Instant,
}

/// The row of this transport.
///
/// # Errors
/// When this node's pages are not on a card.
pub fn transport(config: &TransferConfig, _: &Trust, _: Side) -> Result<Arc<dyn Transport>, SessionError> {
    let gpu = card(config, TransportKind::CudaIpc)?;
    Ok(Arc::new(CudaIpc { gpu }))
}

/// The sending end: exports a ring on `gpu` to whoever is at the other end of `socket`.
///
/// # Errors
/// When the card has no room for the ring, or the system does not let it be shared.
pub fn sender(gpu: &Gpu, socket: UnixStream, limits: &Limits) -> Result<Link<dyn FrameSender>, PathError> {
    let mut signals = Signals::new(socket, limits.stall)?;
    let gather = Gather::new(gpu, limits, limits.slots)?;
    signals.send(&export(&gather, limits)?)?;
    // The receiver's farewell is still to be heard.
    let closer = signals.closer(Shutdown::Write)?;
    let (slots, free) = (limits.slots, (0..limits.slots).collect());
    let sender = Sender { signals, gather, slots, free, begun: VecDeque::new(), lent: Vec::new() };
    Ok(Link { end: Box::new(sender), closer })
}

fn export(gather: &Gather, limits: &Limits) -> Result<[u8; EXPORT_BYTES], PathError> {
    let mut export = [0; EXPORT_BYTES];
    export[..4].copy_from_slice(&EXPORT_MAGIC);
    export[4..8].copy_from_slice(&(limits.slots as u32).to_le_bytes());
    export[8..16].copy_from_slice(&(limits.slot_bytes as u64).to_le_bytes());
    export[16..32].copy_from_slice(&*PROCESS);
    export[32..].copy_from_slice(&gather.region().handle().map_err(failed)?);
    Ok(export)
}

/// The receiving end: maps the ring that the other end of `socket` exports, for `gpu`.
///
/// # Errors
/// When the ring cannot be mapped: it is of this process, or of a card that this one does not reach.
pub fn receiver(
    gpu: &Gpu,
    socket: UnixStream,
    limits: &Limits,
) -> Result<Link<dyn FrameReceiver>, PathError> {
    let mut signals = Signals::new(socket, limits.stall)?;
    let export: [u8; EXPORT_BYTES] = signals.wait(false)?;
    let (limits, handle) = ring_of(&export, limits)?;
    let ring = Mapped::open(gpu, &handle).map_err(failed)?;
    if ring.bytes() < limits.slots * limits.slot_bytes {
        return Err(io::Error::other("a ring that is smaller than its slots").into());
    }
    let scatter = Scatter::new(gpu, &limits, limits.slots)?;
    // Writing stays open: the sender sees the socket's end only when the ring is unmapped.
    let closer = signals.closer(Shutdown::Read)?;
    let receiver = Receiver { scatter, ring, signals, limits, landing: VecDeque::new() };
    Ok(Link { end: Box::new(receiver), closer })
}

/// The sender's ring, within what this side allows.
fn ring_of(export: &[u8; EXPORT_BYTES], mine: &Limits) -> Result<(Limits, [u8; HANDLE_BYTES]), PathError> {
    let refused = |reason: &str| PathError::Io(io::Error::other(reason.to_owned()));
    let (mut slots, mut slot_bytes, mut handle) = ([0; 4], [0; 8], [0; HANDLE_BYTES]);
    slots.copy_from_slice(&export[4..8]);
    slot_bytes.copy_from_slice(&export[8..16]);
    handle.copy_from_slice(&export[32..]);
    let (slots, slot_bytes) = (u32::from_le_bytes(slots), u64::from_le_bytes(slot_bytes));
    if export[..4] != EXPORT_MAGIC || !(1..=MAX_SLOTS).contains(&slots) {
        return Err(refused("not a ring of frames"));
    }
    if !(1..=u64::from(super::MAX_FRAME_BYTES)).contains(&slot_bytes) {
        return Err(refused("a ring of frames of no size that a frame has"));
    }
    if export[16..32] == *PROCESS {
        return Err(refused("cuda_ipc joins two processes, and this is one"));
    }
    Ok((Limits { slots: slots as usize, slot_bytes: slot_bytes as usize, ..mine.clone() }, handle))
}

/// A frame that was told, the slot that it is in, and its checksum, within what the ring has.
fn frame_of(message: &[u8; FRAME_BYTES], ring: &Limits) -> Result<(FrameHeader, usize, u32), PathError> {
    let (mut head, mut slot, mut told) = ([0; HEADER_BYTES], [0; 4], [0; 4]);
    head.copy_from_slice(&message[..HEADER_BYTES]);
    slot.copy_from_slice(&message[HEADER_BYTES..][..4]);
    told.copy_from_slice(&message[HEADER_BYTES + 4..]);
    let header = FrameHeader::decode(&head)?;
    let (slot, told) = (u32::from_le_bytes(slot) as usize, u32::from_le_bytes(told));
    if header.bytes as usize > ring.slot_bytes {
        return Err(PathError::TooLarge { bytes: header.bytes });
    }
    if slot >= ring.slots {
        return Err(io::Error::other("a slot was told that is none").into());
    }
    Ok((header, slot, told))
}

// === impl CudaIpc ===

#[tonic::async_trait]
impl Transport for CudaIpc {
    fn place(&self) -> String {
        place()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let name = format!("baton-{}", hex(&crate::session::secret()));
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        Ok((name, Box::new(Waiting { listener, gpu: self.gpu.clone(), terms: terms.clone() })))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let mut socket = UnixStream::connect_addr(&SocketAddr::from_abstract_name(addr)?)?;
        socket.write_all(&terms.secret)?;
        let (gpu, limits) = (self.gpu.clone(), limits(terms, SLOTS));
        made(move || receiver(&gpu, socket, &limits)).await
    }
}

#[tonic::async_trait]
impl Rendezvous for Waiting {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let Self { listener, gpu, terms } = *self;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let socket = caller(|context| of_this_user(&listener, context), terms.secret).await?.into_std()?;
        made(move || sender(&gpu, socket, &limits(&terms, SLOTS))).await
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    /// On one card, what is gathered early takes from what is being scattered, and frames that wait
    /// for long leave the card's cache.
    fn ahead(&self) -> usize {
        self.slots / 4
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        while let Some(answer) = self.signals.poll()? {
            self.returned(answer)?;
        }
        let Some(&slot) = self.free.last() else { return Ok(()) };
        match self.gather.gather(slot, header, source) {
            // The session hears of it when it is to be sent.
            Err(PathError::Unreadable(_)) => return Ok(()),
            gathered => gathered?,
        }
        self.free.pop();
        self.begun.push_back(Begun { handoff: header.handoff, seq: header.seq, slot });
        Ok(())
    }

    fn checksum(
        &mut self,
        _: Checksum,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<u32, PathError> {
        let spare = self.gather.spare();
        self.gather.gather(spare, header, source)?;
        self.gather.finish(spare)
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let begun = self.begun.iter().position(|begun| begun.is(header));
        let slot = match begun.and_then(|at| self.begun.remove(at)) {
            Some(begun) => begun.slot,
            None => {
                let slot = self.free_slot()?;
                self.gather.gather(slot, header, source).inspect_err(|_| self.free.push(slot))?;
                slot
            }
        };
        // Only what is complete is told: the receiver's card never waits for this one.
        let made = self.gather.finish(slot)?;
        let told = told.unwrap_or(made);
        let mut message = [0; FRAME_BYTES];
        message[..HEADER_BYTES].copy_from_slice(&header.encode());
        message[HEADER_BYTES..][..4].copy_from_slice(&(slot as u32).to_le_bytes());
        message[HEADER_BYTES + 4..].copy_from_slice(&told.to_le_bytes());
        self.lent.push(slot);
        self.signals.send(&message)?;
        Ok(told)
    }
}

impl Sender {
    /// Takes a slot back.
    fn returned(&mut self, answer: [u8; 4]) -> Result<(), PathError> {
        let slot = u32::from_le_bytes(answer) as usize;
        let at = self.lent.iter().position(|&lent| lent == slot);
        let at = at.ok_or_else(|| io::Error::other("a slot came back that was not lent"))?;
        self.free.push(self.lent.swap_remove(at));
        Ok(())
    }

    fn free_slot(&mut self) -> Result<usize, PathError> {
        loop {
            if let Some(slot) = self.free.pop() {
                return Ok(slot);
            }
            let answer = self.signals.wait(false)?;
            self.returned(answer)?;
        }
    }
}

impl Begun {
    fn is(&self, header: &FrameHeader) -> bool {
        (self.handoff, self.seq) == (header.handoff, header.seq)
    }
}

impl Drop for Sender {
    /// The ring must not go while the receiver maps it; a dead one's socket has ended.
    fn drop(&mut self) {
        if let Ok(closer) = self.signals.closer(Shutdown::Write) {
            closer.close();
        }
        self.signals.farewell(FAREWELL);
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        if self.landing.is_empty() {
            let message = self.signals.wait(true)?;
            self.land(&message, place)?;
        }
        self.land_others(place)?;
        let Some(Landing { header, told, slot, begun }) = self.landing.pop_front() else {
            return Err(PathError::Closed);
        };
        let (crc, intact) = self.scatter.finish(slot, &header, told)?;
        let duration = begun.elapsed();
        self.signals.send(&(slot as u32).to_le_bytes())?;
        Ok(Received { header, crc, intact, duration })
    }
}

impl Receiver {
    /// Whatever else was told, and is told until the oldest has landed, lands meanwhile: a launch
    /// takes half as long as a frame.
    fn land_others(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<(), PathError> {
        let begun = Instant::now();
        loop {
            while self.landing.len() < self.limits.slots {
                match self.signals.poll() {
                    Ok(Some(message)) => self.land(&message, place)?,
                    Ok(None) => break,
                    // What was told still lands; the next wait says that nothing more comes.
                    Err(_) => return Ok(()),
                }
            }
            let is_landing = |oldest: &Landing| !self.scatter.is_done(oldest.slot);
            if begun.elapsed() >= SPIN || !self.landing.front().is_some_and(is_landing) {
                return Ok(());
            }
        }
    }

    fn land(
        &mut self,
        message: &[u8; FRAME_BYTES],
        place: &mut dyn FnMut(&FrameHeader) -> Placement,
    ) -> Result<(), PathError> {
        let begun = Instant::now();
        let (header, slot, told) = frame_of(message, &self.limits)?;
        if self.landing.iter().any(|landing| landing.slot == slot) {
            return Err(io::Error::other("a slot was told that is not free").into());
        }
        let frame = self.ring.address() + (slot * self.limits.slot_bytes) as u64;
        self.scatter.scatter(slot, (frame, &header), place(&header))?;
        self.landing.push_back(Landing { header, told, slot, begun });
        Ok(())
    }
}
