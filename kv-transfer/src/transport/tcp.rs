//! Sockets of their own for the frames of a session.
//!
//! The receiver connects to the sender's data listener and says which session
//! it belongs to, proved by the session's secret. Payloads are written straight
//! out of pages and read straight into pages. Frames go over the session's
//! sockets in turn, so that their order needs no words.
//!
//! - [`listener`]: takes sockets that know a session's secret

pub mod listener;

use std::{
    hint::spin_loop,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::Shutdown,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource, SessionId, frame::HEADER_BYTES};
use baton_trust::{Gate, Trust};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use super::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, MAX_FRAME_BYTES, PathError, Placement, Received,
    check_size,
    checksum::Crc,
    offer::{Rendezvous, Terms, Transport},
    socket::{self, Socket},
};
use crate::{SessionError, TransferConfig, metrics::Side};
use listener::{Expectation, Expected};

/// Bytes that open a data socket: magic, session, secret, its place among the session's sockets, their number.
pub const HELLO_BYTES: usize = 46;

/// The listener's answer when it took the socket.
pub const TAKEN: u8 = 1;

/// Most sockets of one session.
pub const MAX_SOCKETS: u8 = 16;

const HELLO_MAGIC: [u8; 4] = *b"BTNd";
/// How long to try again before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);
const SCRATCH_BYTES: usize = 64 << 10;

/// One node's data sockets.
struct Tcp {
    /// Where peers may be.
    gate: Gate,
    /// What sockets are encrypted with, if they are.
    tls: Option<Trust>,
    /// Where the sending side listens, and who is expected there.
    listening: Option<(String, Expected)>,
    /// Ends with the node.
    _tasks: JoinSet<()>,
}

/// A session's sockets that have not come yet.
struct Waiting {
    expectation: Expectation,
    terms: Terms,
}

struct Sender {
    sockets: Vec<Socket>,
    turn: usize,
    stall: Duration,
}

struct Receiver {
    sockets: Vec<Socket>,
    turn: usize,
    checksum: Checksum,
    stall: Duration,
    scratch: Box<[u8]>,
}

/// What a data socket says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketHello {
    /// Its session.
    pub session: SessionId,
    /// Of that session.
    pub secret: [u8; 32],
    /// Its place among the session's sockets.
    pub index: u8,
    /// How many the session has.
    pub sockets: u8,
}

/// The row of this transport. The sending side listens from now on; call it inside a tokio runtime.
///
/// # Errors
/// When the configured address may not be listened on, or certificates are missing.
pub fn transport(
    config: &TransferConfig,
    trust: &Trust,
    side: Side,
) -> Result<Arc<dyn Transport>, SessionError> {
    if config.tls && !trust.is_certified() {
        return Err(SessionError::NoCertificates);
    }
    let (gate, tls) = (trust.gate(), config.data_tls(trust).cloned());
    let (mut tasks, mut listening) = (JoinSet::new(), None);
    if side == Side::Sending {
        let listener = gate.listen(config.data_listen)?;
        let (addr, expected) = (listener.local_addr().to_string(), Expected::new(tls.clone()));
        tasks.spawn(listener::listen(listener.into_inner(), expected.clone(), config.handshake_timeout()));
        listening = Some((addr, expected));
    }
    Ok(Arc::new(Tcp { gate, tls, listening, _tasks: tasks }))
}

/// The sending end over sockets that have said hello, at least one.
///
/// # Errors
/// When the sockets cannot be set up.
pub fn sender(sockets: Vec<Socket>, stall: Duration) -> io::Result<Link<dyn FrameSender>> {
    let closer = prepare(&sockets)?;
    Ok(Link { end: Box::new(Sender { sockets, turn: 0, stall }), closer })
}

/// The receiving end over sockets that have said hello, at least one.
///
/// # Errors
/// When the sockets cannot be set up.
pub fn receiver(
    sockets: Vec<Socket>,
    checksum: Checksum,
    stall: Duration,
) -> io::Result<Link<dyn FrameReceiver>> {
    let closer = prepare(&sockets)?;
    let scratch = vec![0; SCRATCH_BYTES].into_boxed_slice();
    Ok(Link { end: Box::new(Receiver { sockets, turn: 0, checksum, stall, scratch }), closer })
}

fn prepare(sockets: &[Socket]) -> io::Result<Closer> {
    for socket in sockets {
        socket.tcp().set_nonblocking(true)?;
        socket.tcp().set_nodelay(true)?;
    }
    let others = sockets.iter().map(|socket| socket.tcp().try_clone()).collect::<io::Result<Vec<_>>>()?;
    Ok(Closer::new(move || {
        for other in &others {
            // An error means that the socket is down already.
            let _ = other.shutdown(Shutdown::Both);
        }
    }))
}

/// Does what a socket may not be ready for: tries again for a moment, which is
/// cheaper than to sleep and be woken, then sleeps until it is ready. `None`
/// waits as long as it takes.
fn patiently(
    socket: &mut Socket,
    flags: PollFlags,
    limit: Option<Duration>,
    mut work: impl FnMut(&mut Socket) -> io::Result<usize>,
) -> Result<usize, PathError> {
    let begun = Instant::now();
    loop {
        match work(socket) {
            Ok(0) => return Err(PathError::Closed),
            Ok(done) => return Ok(done),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // TLS says so where a peer leaves without a farewell.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(PathError::Closed),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(PathError::Io(error)),
            Err(_) if begun.elapsed() < SPIN => spin_loop(),
            Err(_) => {
                let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Err(PathError::Stalled);
                }
                let left = left.and_then(|left| Timespec::try_from(left).ok());
                match poll(&mut [PollFd::new(socket.tcp(), flags)], left.as_ref()) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(PathError::Io(error.into())),
                }
            }
        }
    }
}

// === impl Tcp ===

#[tonic::async_trait]
impl Transport for Tcp {
    /// Encrypted sockets are another way than open ones.
    fn place(&self) -> String {
        if self.tls.is_some() { "tls".to_owned() } else { String::new() }
    }

    fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let (addr, expected) = self.listening.as_ref().ok_or(PathError::Closed)?;
        let expectation = expected.expect(terms.session, terms.secret);
        Ok((addr.clone(), Box::new(Waiting { expectation, terms: terms.clone() })))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let unavailable = |reason: String| PathError::Unavailable { reason };
        let addr = self.gate.parse(addr).map_err(|error| unavailable(error.to_string()))?;
        let count = terms.config.tcp_sockets();
        let mut sockets = Vec::new();
        for index in 0..count {
            let socket = tokio::net::TcpStream::connect(addr).await?;
            let mut socket = socket::connect(socket, self.tls.as_ref()).await?;
            let hello = SocketHello { session: terms.session, secret: terms.secret, index, sockets: count };
            socket.write_all(&hello.encode()).await?;
            socket.flush().await?;
            if socket.read_u8().await? != TAKEN {
                return Err(unavailable("the data socket was not taken".to_owned()));
            }
            sockets.push(Socket::from_opening(socket)?);
        }
        Ok(receiver(sockets, terms.checksum, terms.config.stall_timeout())?)
    }
}

// === impl Waiting ===

#[tonic::async_trait]
impl Rendezvous for Waiting {
    async fn accept(mut self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let sockets = self.expectation.sockets().await.ok_or(PathError::Closed)?;
        Ok(sender(sockets, self.terms.config.stall_timeout())?)
    }
}

// === impl SocketHello ===

impl SocketHello {
    /// As it goes over the socket.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..4].copy_from_slice(&HELLO_MAGIC);
        out[4..12].copy_from_slice(&self.session.0.to_le_bytes());
        out[12..44].copy_from_slice(&self.secret);
        (out[44], out[45]) = (self.index, self.sockets);
        out
    }

    /// None when the bytes are no hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let (mut session, mut secret) = ([0; 8], [0; 32]);
        session.copy_from_slice(&bytes[4..12]);
        secret.copy_from_slice(&bytes[12..44]);
        let (index, sockets) = (bytes[44], bytes[45]);
        let valid = bytes[..4] == HELLO_MAGIC && index < sockets && sockets <= MAX_SOCKETS;
        valid.then_some(Self { session: SessionId(u64::from_le_bytes(session)), secret, index, sockets })
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn send(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        let head = header.encode();
        let turn = self.turn;
        self.turn = (turn + 1) % self.sockets.len();
        let (socket, stall) = (&mut self.sockets[turn], self.stall);
        let mut broken = None;
        let read = source.read(&header.span, &mut |payload| {
            if payload.iter().map(|piece| piece.len()).sum::<usize>() != header.bytes as usize {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(payload.len() + 1);
            pieces.push(IoSlice::new(&head));
            pieces.extend_from_slice(payload);
            broken = write_all(socket, &mut pieces, stall).err();
            Ok(())
        });
        broken.map_or_else(|| Ok(read?), Err)
    }
}

fn write_all(socket: &mut Socket, mut pieces: &mut [IoSlice<'_>], stall: Duration) -> Result<(), PathError> {
    while !pieces.is_empty() {
        let write = |socket: &mut Socket| socket.write_vectored(pieces);
        let written = patiently(socket, PollFlags::OUT, Some(stall), write)?;
        IoSlice::advance_slices(&mut pieces, written);
    }
    // TLS may hold the last bytes back until here.
    patiently(socket, PollFlags::OUT, Some(stall), |socket| socket.flush().map(|()| 1)).map(drop)
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let header = FrameHeader::decode(&self.header()?)?;
        if header.bytes > MAX_FRAME_BYTES {
            return Err(PathError::TooLarge { bytes: header.bytes });
        }
        let begun = Instant::now();
        let mut crc = self.checksum.begin();
        let mut whole = true;
        match place(&header) {
            Placement::Discard => self.discard(header.bytes, &mut crc)?,
            Placement::Land(sink) => {
                let (socket, stall) = (&mut self.sockets[self.turn], self.stall);
                let mut outcome = None;
                let landed = sink.write(&header.span, &mut |pieces| {
                    check_size(pieces, &header)?;
                    outcome = Some(read_all(socket, pieces, &mut crc, stall));
                    Ok(())
                });
                match outcome {
                    Some(read) => read?,
                    // The sink has no such memory: the payload must still leave the socket.
                    None => self.discard(header.bytes, &mut crc)?,
                }
                whole = landed.is_ok();
            }
        }
        self.turn = (self.turn + 1) % self.sockets.len();
        let intact = whole && crc.value() == header.crc;
        Ok(Received { header, intact, duration: begun.elapsed() })
    }
}

impl Receiver {
    /// Waits as long as it takes for a header to begin, but not inside one.
    fn header(&mut self) -> Result<[u8; HEADER_BYTES], PathError> {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        while at < HEADER_BYTES {
            let (socket, limit) = (&mut self.sockets[self.turn], (at > 0).then_some(self.stall));
            at += patiently(socket, PollFlags::IN, limit, |socket| socket.read(&mut bytes[at..]))?;
        }
        Ok(bytes)
    }

    fn discard(&mut self, bytes: u32, crc: &mut Crc) -> Result<(), PathError> {
        let mut left = bytes as usize;
        while left > 0 {
            let piece = &mut self.scratch[..left.min(SCRATCH_BYTES)];
            left -= piece.len();
            let socket = &mut self.sockets[self.turn];
            read_all(socket, &mut [IoSliceMut::new(piece)], crc, self.stall)?;
        }
        Ok(())
    }
}

/// Fills `pieces` and adds them to `crc` while they are still in the cache.
fn read_all(
    socket: &mut Socket,
    mut pieces: &mut [IoSliceMut<'_>],
    crc: &mut Crc,
    stall: Duration,
) -> Result<(), PathError> {
    while !pieces.is_empty() {
        let read = patiently(socket, PollFlags::IN, Some(stall), |socket| socket.read_vectored(pieces))?;
        let mut left = read;
        for piece in pieces.iter() {
            let len = left.min(piece.len());
            crc.update(&piece[..len]);
            left -= len;
            if left == 0 {
                break;
            }
        }
        IoSliceMut::advance_slices(&mut pieces, read);
    }
    Ok(())
}
