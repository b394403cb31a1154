//! A pair of cards joined by NCCL, on one host or two.
//!
//! A frame is announced over a socket, the receiver answers that it has posted its
//! half, and both post send and receive in that one order: from staging to staging,
//! with a gather before and a scatter after, so that pages are never NCCL's. What
//! was announced is posted by both whatever became of its handoff; that of a dead
//! one is scattered into scratch. The communicator is the session's own: aborting
//! it when the path ends touches nobody else.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::{Arc, atomic::Ordering},
    task::Context,
    time::{Duration, Instant},
};

use baton_kernels::cuda::{
    Gpu, Nccl, Region,
    nccl::{ID_BYTES, Pair},
};
use baton_protocol::{FrameHeader, HandoffId, KvSource, frame::HEADER_BYTES};
use baton_trust::{Gate, Listener, ReachError, Trust};
use tokio::io::AsyncWriteExt;

use super::{
    Checksum, FrameReceiver, FrameSender, Link, PathError, Placement, Received,
    caller::caller,
    card::{
        Limits, failed,
        gather::Gather,
        meet::{card, limits, made},
        scatter::Scatter,
        signals::Signals,
    },
    offer::{Rendezvous, Terms, Transport},
};
use crate::{SessionError, TransferConfig, TransportKind, Wanted, metrics::Side};

/// What the sender tells first: the name to join by, and the size of its largest frame.
const INVITATION_BYTES: usize = ID_BYTES + 8;

/// A header and the frame's checksum.
const FRAME_BYTES: usize = HEADER_BYTES + 4;

/// The receiver's answer to a header.
const POSTED: u8 = 1;

/// Slots of a session's staging: what is gathered, sent, scattered and given back at once.
const SLOTS: usize = 8;

/// A frame is gathered, sent and scattered in the order of one stream: NCCL's.
const LANES: usize = 1;

/// Between two looks at a transfer that takes longer than a moment.
const NAP: Duration = Duration::from_micros(50);

/// Looks at a transfer without a nap.
const LOOKS: u32 = 2_000;

/// A card that NCCL can join with another one.
struct NcclCard {
    gpu: Gpu,
    version: String,
    gate: Gate,
    listen: IpAddr,
}

/// A path whose receiver has not come yet.
struct Waiting {
    listener: Listener,
    gpu: Gpu,
    terms: Terms,
}

struct Sender {
    /// First: what is under way is aborted before anybody waits for it.
    pair: Pair,
    signals: Signals,
    gather: Gather,
    slots: usize,
    next: usize,
    /// Frames being gathered, oldest first.
    begun: VecDeque<(HandoffId, u32, usize)>,
}

struct Receiver {
    /// As with the sender.
    pair: Pair,
    signals: Signals,
    scatter: Scatter,
    staging: Region,
    limits: Limits,
    next: usize,
    /// Frames being received, oldest first.
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
/// When it is not named, this node's pages are not on a card, there is no NCCL that can be used, data is to be
/// encrypted, or the configured address may not be listened on.
pub fn transport(
    config: &TransferConfig,
    trust: &Trust,
    _: Side,
) -> Result<Arc<dyn Transport>, SessionError> {
    let not_here = |reason| SessionError::NotHere { transport: TransportKind::Nccl.as_str(), reason };
    if config.transport != Wanted::Only(TransportKind::Nccl) {
        return Err(not_here("joining takes seconds: it is used only where it is named".to_owned()));
    }
    let gpu = card(config, TransportKind::Nccl)?;
    if config.tls {
        return Err(not_here("NCCL does not encrypt".to_owned()));
    }
    let version = Nccl::load().map_err(|error| not_here(error.to_string()))?.version();
    let (gate, listen) = (trust.gate(), config.data_listen);
    gate.check(listen)?;
    Ok(Arc::new(NcclCard { gpu, version, gate, listen: listen.ip() }))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: ReachError) -> PathError {
    PathError::Unavailable { reason: error.to_string() }
}

/// Time to join: the session has other paths to open too.
fn join_limit(config: &TransferConfig) -> Duration {
    config.connect_timeout() * 2 / 3
}

/// The sending end: joins the receiver at the other end of `socket` within `limit`.
///
/// # Errors
/// When there is no NCCL, the card has no room for staging, or the receiver does not join.
pub fn sender(
    gpu: &Gpu,
    socket: TcpStream,
    (limits, limit): (&Limits, Duration),
) -> Result<Link<dyn FrameSender>, PathError> {
    let nccl = Nccl::load().map_err(failed)?;
    let mut signals = signals(socket, limits)?;
    let gather = Gather::new(gpu, limits, LANES)?;
    let id = nccl.new_id().map_err(failed)?;
    let mut invitation = [0; INVITATION_BYTES];
    invitation[..ID_BYTES].copy_from_slice(&id);
    invitation[ID_BYTES..].copy_from_slice(&(limits.slot_bytes as u64).to_le_bytes());
    signals.send(&invitation)?;
    let pair = join(nccl, gather.lane(0), (&id, false), (&signals, limit))?;
    let closer = signals.closer(Shutdown::Both)?;
    let sender = Sender { pair, signals, gather, slots: limits.slots, next: 0, begun: VecDeque::new() };
    Ok(Link { end: Box::new(sender), closer })
}

/// The receiving end: joins the sender at the other end of `socket` within `limit`.
///
/// # Errors
/// As [`sender`].
pub fn receiver(
    gpu: &Gpu,
    socket: TcpStream,
    (limits, limit): (&Limits, Duration),
) -> Result<Link<dyn FrameReceiver>, PathError> {
    let nccl = Nccl::load().map_err(failed)?;
    let mut signals = signals(socket, limits)?;
    let (limits, id) = invited(&signals.wait(false)?, limits)?;
    let scatter = Scatter::new(gpu, &limits, LANES)?;
    let staging = Region::new(gpu, limits.slots * limits.slot_bytes).map_err(failed)?;
    let pair = join(nccl, scatter.lane(0), (&id, true), (&signals, limit))?;
    let closer = signals.closer(Shutdown::Both)?;
    let receiver = Receiver { pair, signals, scatter, staging, limits, next: 0, landing: VecDeque::new() };
    Ok(Link { end: Box::new(receiver), closer })
}

/// Staging for the sender's largest frame, within what any path allows, and the name to join by.
fn invited(
    invitation: &[u8; INVITATION_BYTES],
    mine: &Limits,
) -> Result<(Limits, [u8; ID_BYTES]), PathError> {
    let (mut id, mut slot_bytes) = ([0; ID_BYTES], [0; 8]);
    id.copy_from_slice(&invitation[..ID_BYTES]);
    slot_bytes.copy_from_slice(&invitation[ID_BYTES..]);
    let slot_bytes = u64::from_le_bytes(slot_bytes);
    if !(1..=u64::from(super::MAX_FRAME_BYTES)).contains(&slot_bytes) {
        return Err(PathError::Unavailable { reason: format!("frames of up to {slot_bytes} bytes") });
    }
    Ok((Limits { slot_bytes: slot_bytes as usize, ..mine.clone() }, id))
}

/// A frame that was announced and its checksum, within what staging has room for.
fn frame_of(message: &[u8; FRAME_BYTES], staging: &Limits) -> Result<(FrameHeader, u32), PathError> {
    let (mut head, mut told) = ([0; HEADER_BYTES], [0; 4]);
    head.copy_from_slice(&message[..HEADER_BYTES]);
    told.copy_from_slice(&message[HEADER_BYTES..]);
    let header = FrameHeader::decode(&head)?;
    if header.bytes as usize > staging.slot_bytes {
        return Err(PathError::TooLarge { bytes: header.bytes });
    }
    Ok((header, u32::from_le_bytes(told)))
}

fn signals(socket: TcpStream, limits: &Limits) -> io::Result<Signals> {
    socket.set_nodelay(true)?;
    Signals::new(socket, limits.stall)
}

fn join(
    nccl: &'static Nccl,
    gpu: &Gpu,
    (id, rank): (&[u8; ID_BYTES], bool),
    (signals, limit): (&Signals, Duration),
) -> Result<Pair, PathError> {
    let (until, closed) = (Instant::now() + limit, signals.closed());
    let given_up = || Instant::now() >= until || closed.load(Ordering::SeqCst);
    nccl.join(gpu, id, rank, &given_up).map_err(failed)
}

/// Waits for something on the card that the peer is needed for.
fn wait(pair: &Pair, signals: &mut Signals, done: &dyn Fn() -> bool) -> Result<(), PathError> {
    let (since, mut looks) = (Instant::now(), 0_u32);
    while !done() {
        looks += 1;
        if looks < LOOKS {
            std::hint::spin_loop();
            continue;
        }
        if signals.closed().load(Ordering::SeqCst) {
            return Err(PathError::Closed);
        }
        if since.elapsed() >= signals.stall() {
            return Err(PathError::Stalled);
        }
        // A peer that has died says nothing on the card; its socket does.
        signals.look()?;
        pair.check().map_err(failed)?;
        std::thread::sleep(NAP);
    }
    Ok(())
}

// === impl NcclCard ===

#[tonic::async_trait]
impl Transport for NcclCard {
    /// Both sides have the same NCCL.
    fn place(&self) -> String {
        self.version.clone()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let listener = self.gate.listen(SocketAddr::new(self.listen, 0)).map_err(unavailable)?;
        let addr = listener.local_addr().to_string();
        Ok((addr, Box::new(Waiting { listener, gpu: self.gpu.clone(), terms: terms.clone() })))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let addr = self.gate.parse(addr).map_err(unavailable)?;
        let mut socket = tokio::net::TcpStream::connect(addr).await?;
        socket.write_all(&terms.secret).await?;
        let socket = socket.into_std()?;
        let (gpu, limits, limit) = (self.gpu.clone(), limits(terms, SLOTS), join_limit(&terms.config));
        made(move || receiver(&gpu, socket, (&limits, limit))).await
    }
}

#[tonic::async_trait]
impl Rendezvous for Waiting {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let Self { listener, gpu, terms } = *self;
        let listener = listener.into_inner();
        let accept = |context: &mut Context<'_>| listener.poll_accept(context).map_ok(|(socket, _)| socket);
        let socket = caller(accept, terms.secret).await?.into_std()?;
        let limit = join_limit(&terms.config);
        made(move || sender(&gpu, socket, (&limits(&terms, SLOTS), limit))).await
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn ahead(&self) -> usize {
        self.slots / 2
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        if self.begun.len() == self.slots {
            return Ok(());
        }
        // The slot's frame before is sent earlier on the same stream.
        let slot = self.next;
        wait(&self.pair, &mut self.signals, &|| self.gather.is_done(slot))?;
        match self.gather.gather(slot, header, source) {
            // The session hears of it when it is to be sent.
            Err(PathError::Unreadable(_)) => return Ok(()),
            gathered => gathered?,
        }
        self.next = (slot + 1) % self.slots;
        self.begun.push_back((header.handoff, header.seq, slot));
        Ok(())
    }

    fn checksum(
        &mut self,
        _: Checksum,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<u32, PathError> {
        let slot = self.spare(header, source)?;
        self.finish(slot)
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let is = |begun: &(HandoffId, u32, usize)| (begun.0, begun.1) == (header.handoff, header.seq);
        let begun = self.begun.iter().position(is).and_then(|at| self.begun.remove(at));
        let slot = match begun {
            Some((_, _, slot)) => slot,
            None => self.spare(header, source)?,
        };
        let made = self.finish(slot)?;
        let told = told.unwrap_or(made);
        let mut message = [0; FRAME_BYTES];
        message[..HEADER_BYTES].copy_from_slice(&header.encode());
        message[HEADER_BYTES..].copy_from_slice(&told.to_le_bytes());
        self.signals.send(&message)?;
        if self.signals.wait(false)? != [POSTED] {
            return Err(io::Error::other("an answer that is none").into());
        }
        let Self { pair, signals, gather, .. } = self;
        let frame = (gather.region(), gather.offset(slot));
        pair.send(frame, header.bytes as usize, &deadline(signals)).map_err(failed)?;
        Ok(told)
    }
}

impl Sender {
    /// Begins with a frame in the slot that is nobody's.
    fn spare(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<usize, PathError> {
        let spare = self.gather.spare();
        self.gather.gather(spare, header, source).map(|()| spare)
    }

    fn finish(&mut self, slot: usize) -> Result<u32, PathError> {
        wait(&self.pair, &mut self.signals, &|| self.gather.is_done(slot))?;
        self.gather.finish(slot)
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        if self.landing.is_empty() {
            let head = self.signals.wait(true)?;
            self.land(&head, place)?;
        }
        // Whatever else was announced is received meanwhile.
        while self.landing.len() < self.limits.slots
            && let Some(head) = self.signals.poll()?
        {
            self.land(&head, place)?;
        }
        let Some(Landing { header, told, slot, begun }) = self.landing.pop_front() else {
            return Err(PathError::Closed);
        };
        wait(&self.pair, &mut self.signals, &|| self.scatter.is_done(slot))?;
        let (crc, intact) = self.scatter.finish(slot, &header, told)?;
        Ok(Received { header, crc, intact, duration: begun.elapsed() })
    }
}

impl Receiver {
    fn land(
        &mut self,
        message: &[u8; FRAME_BYTES],
        place: &mut dyn FnMut(&FrameHeader) -> Placement,
    ) -> Result<(), PathError> {
        let begun = Instant::now();
        let (header, told) = frame_of(message, &self.limits)?;
        let placement = place(&header);
        let slot = self.next;
        self.next = (slot + 1) % self.limits.slots;
        let at = slot * self.limits.slot_bytes;
        self.signals.send(&[POSTED])?;
        let Self { pair, signals, staging, .. } = self;
        pair.recv((staging, at), header.bytes as usize, &deadline(signals)).map_err(failed)?;
        self.scatter.scatter(slot, (self.staging.address() + at as u64, &header), placement)?;
        self.landing.push_back(Landing { header, told, slot, begun });
        Ok(())
    }
}

/// When a call of NCCL is given up.
fn deadline(signals: &Signals) -> impl Fn() -> bool {
    let (until, closed) = (Instant::now() + signals.stall(), signals.closed().clone());
    move || Instant::now() >= until || closed.load(Ordering::SeqCst)
}
