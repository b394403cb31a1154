//! Frames over sockets: header, payload, checksum, one frame after the other.
//!
//! A payload goes out of pages and into pages in steps that are summed up just
//! after the system has copied them, while they are in a core's cache.

use std::{
    hint::spin_loop,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource, frame::HEADER_BYTES};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::{set_socket_recv_buffer_size, set_tcp_congestion},
};

use crate::transport::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, PathError, Placement, Received, checksum::Crc,
    decode, land, read_pieces, socket::Socket,
};

/// How long to try again before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);

/// How often to pause before looking again.
const PAUSES: u32 = 32;

/// Not at all, for `poll`.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Bytes of a step: little enough to stay in a core's cache, large against a call of the system.
const STEP: usize = 128 << 10;

/// Bytes written at once. Between cores that share a cache, loopback carried a quarter more with 1 MiB than
/// with 256 KiB (BENCHMARKS.md); with less than that it ran at half its speed more often; why is not known.
const WRITE: usize = 1 << 20;

/// Payload of a frame that may wait for the next one. What loopback carries at once is 64 KiB: of
/// frames as large as that, waiting would only keep the receiver.
const SMALL: u32 = 16 << 10;

/// Bytes that may wait in a socket of one host: what does not fit into the cores' caches is read
/// from memory once more.
const WAITING_BYTES: usize = 1 << 20;

/// How the system avoids congestion within one host, where there is none: BBR, which may be its
/// usual way, holds segments back by a timer and takes a fifth of the sender's time for it.
const UNPACED: &str = "reno";

/// A checksum and a header.
const TAIL_BYTES: usize = 4 + HEADER_BYTES;

struct Sender {
    sockets: Vec<Socket>,
    turn: usize,
    checksum: Checksum,
    stall: Duration,
    /// Frames that were announced and not sent yet.
    begun: usize,
    /// The checksum of the frame before, which leaves with the next one.
    owed: Option<[u8; 4]>,
}

struct Receiver {
    sockets: Vec<Incoming>,
    turn: usize,
    checksum: Checksum,
}

/// A socket that frames come from.
struct Incoming {
    socket: Socket,
    stall: Duration,
    /// What comes behind a payload: the checksum that was told, and the next header, which is
    /// taken along where it is there already.
    tail: [u8; TAIL_BYTES],
    /// Bytes of it that have come.
    held: usize,
}

/// The sending end over sockets that have said hello, at least one.
///
/// # Errors
/// When the sockets cannot be set up.
pub fn sender(
    sockets: Vec<Socket>,
    checksum: Checksum,
    stall: Duration,
) -> io::Result<Link<dyn FrameSender>> {
    let closer = prepare(&sockets)?;
    Ok(Link { end: Box::new(Sender { sockets, turn: 0, checksum, stall, begun: 0, owed: None }), closer })
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
    for socket in sockets.iter().map(Socket::tcp) {
        if is_of_one_host(socket)? {
            set_socket_recv_buffer_size(socket, WAITING_BYTES)?;
        }
    }
    // There is no frame before the first one.
    let incoming = |socket| Incoming { socket, stall, tail: [0; TAIL_BYTES], held: 4 };
    let sockets = sockets.into_iter().map(incoming).collect();
    Ok(Link { end: Box::new(Receiver { sockets, turn: 0, checksum }), closer })
}

fn prepare(sockets: &[Socket]) -> io::Result<Closer> {
    for socket in sockets {
        socket.tcp().set_nonblocking(true)?;
        socket.tcp().set_nodelay(true)?;
        if is_of_one_host(socket.tcp())? {
            // A system without it sends as it did.
            let _ = set_tcp_congestion(socket.tcp(), UNPACED);
        }
    }
    let others = sockets.iter().map(|socket| socket.tcp().try_clone()).collect::<io::Result<Vec<_>>>()?;
    Ok(Closer::new(move || {
        for other in &others {
            // An error means that the socket is down already.
            let _ = other.shutdown(Shutdown::Both);
        }
    }))
}

fn is_of_one_host(socket: &TcpStream) -> io::Result<bool> {
    Ok(socket.local_addr()?.ip() == socket.peer_addr()?.ip())
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
            // Asking takes no lock of the socket; trying would, and so keep the system from it.
            Err(_) if begun.elapsed() < SPIN => {
                while begun.elapsed() < SPIN
                    && poll(&mut [PollFd::new(socket.tcp(), flags)], Some(&NOW)) == Ok(0)
                {
                    (0..PAUSES).for_each(|_| spin_loop());
                }
            }
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

// === impl Sender ===

impl FrameSender for Sender {
    /// The checksum of a frame leaves together with the beginning of the next one.
    fn ahead(&self) -> usize {
        usize::from(self.sockets.len() == 1)
    }

    fn begin(&mut self, _: &FrameHeader, _: &Arc<dyn KvSource>) -> Result<(), PathError> {
        self.begun += 1;
        Ok(())
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let Self { sockets, turn, checksum, stall, begun, owed } = self;
        *begun = begun.saturating_sub(1);
        // Over several sockets the next frame takes another one.
        let (more, small) = (*begun > 0 && sockets.len() == 1, header.bytes <= SMALL);
        let socket = &mut sockets[*turn];
        let sent = read_pieces(header, &**source, |pieces| {
            let (before, head, mut crc) = (owed.take(), header.encode(), checksum.begin());
            let mut step: Vec<_> = before.iter().map(|told| IoSlice::new(told)).collect();
            step.push(IoSlice::new(&head));
            let (mut unsummed, mut room) = (Vec::new(), WRITE);
            for piece in pieces.iter().flat_map(|piece| piece.chunks(STEP)) {
                if piece.len() > room {
                    write_all(socket, &mut step, false, *stall)?;
                    unsummed.drain(..).for_each(|piece| crc.update(piece));
                    step.clear();
                    room = WRITE;
                }
                step.push(IoSlice::new(piece));
                unsummed.push(piece);
                room -= piece.len();
            }
            if more || !small {
                write_all(socket, &mut step, more && small, *stall)?;
                step.clear();
            }
            unsummed.drain(..).for_each(|piece| crc.update(piece));
            let told = told.unwrap_or_else(|| crc.value());
            let last = told.to_le_bytes();
            if more {
                *owed = Some(last);
                return Ok(told);
            }
            step.push(IoSlice::new(&last));
            write_all(socket, &mut step, false, *stall)?;
            // TLS may hold the last bytes back until here.
            patiently(socket, PollFlags::OUT, Some(*stall), |socket| socket.flush().map(|()| 1))?;
            Ok(told)
        });
        if matches!(sent, Err(PathError::Unreadable(_)))
            && let Some(told) = owed.take()
        {
            // Nothing may follow: what waits for more leaves now.
            write_all(socket, &mut [IoSlice::new(&told)], false, *stall)?;
            patiently(socket, PollFlags::OUT, Some(*stall), |socket| socket.flush().map(|()| 1))?;
        }
        let told = sent?;
        *turn = (*turn + 1) % sockets.len();
        Ok(told)
    }
}

fn write_all(
    socket: &mut Socket,
    mut pieces: &mut [IoSlice<'_>],
    more: bool,
    stall: Duration,
) -> Result<(), PathError> {
    while !pieces.is_empty() {
        let write = |socket: &mut Socket| socket.send(pieces, more);
        let written = patiently(socket, PollFlags::OUT, Some(stall), write)?;
        IoSlice::advance_slices(&mut pieces, written);
    }
    Ok(())
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let Self { sockets, turn, checksum } = self;
        let socket = &mut sockets[*turn];
        let header = decode(&socket.header()?)?;
        let mut left = header.bytes as usize;
        let received = land(header, place, |pieces| {
            let mut crc = checksum.begin();
            if let Some(pieces) = pieces {
                socket.fill(pieces, true, &mut crc)?;
            } else {
                let mut scratch = [0; STEP];
                while left > STEP {
                    socket.fill(&mut [IoSliceMut::new(&mut scratch)], false, &mut crc)?;
                    left -= STEP;
                }
                socket.fill(&mut [IoSliceMut::new(&mut scratch[..left])], true, &mut crc)?;
            }
            Ok((crc.value(), socket.told()))
        })?;
        *turn = (*turn + 1) % sockets.len();
        Ok(received)
    }
}

// === impl Incoming ===

impl Incoming {
    /// Waits as long as it takes for a header to begin, but not inside one.
    fn header(&mut self) -> Result<[u8; HEADER_BYTES], PathError> {
        while self.held < TAIL_BYTES {
            let (tail, limit) = (&mut self.tail[self.held..], (self.held > 4).then_some(self.stall));
            self.held += patiently(&mut self.socket, PollFlags::IN, limit, |socket| socket.read(tail))?;
        }
        self.held = 0;
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&self.tail[4..]);
        Ok(header)
    }

    /// The checksum that came behind the last payload.
    fn told(&self) -> u32 {
        u32::from_le_bytes([self.tail[0], self.tail[1], self.tail[2], self.tail[3]])
    }

    /// Fills `pieces` and adds them to `crc`. Behind the `last` ones of a payload comes what was told.
    fn fill(&mut self, pieces: &mut [IoSliceMut<'_>], last: bool, crc: &mut Crc) -> Result<(), PathError> {
        let Self { socket, stall, tail, held } = self;
        let steps = pieces.iter_mut().flat_map(|piece| piece.chunks_mut(STEP));
        let mut steps: Vec<_> = steps.map(IoSliceMut::new).collect();
        let mut payload: usize = steps.iter().map(|step| step.len()).sum();
        if last {
            steps.push(IoSliceMut::new(tail));
        }
        let mut rest = &mut steps[..];
        while payload > 0 || (last && *held < 4) {
            let mut bytes = 0;
            let more = |step: &&IoSliceMut<'_>| {
                bytes += step.len();
                bytes - step.len() < STEP
            };
            let count = rest.iter().take_while(more).count();
            let read = patiently(socket, PollFlags::IN, Some(*stall), |socket| {
                socket.read_vectored(&mut rest[..count])
            })?;
            let mut fresh = read.min(payload);
            (payload, *held) = (payload - fresh, *held + read - fresh);
            for step in rest.iter() {
                let len = fresh.min(step.len());
                crc.update(&step[..len]);
                fresh -= len;
                if fresh == 0 {
                    break;
                }
            }
            IoSliceMut::advance_slices(&mut rest, read);
        }
        Ok(())
    }
}
