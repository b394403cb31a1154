//! Frames over sockets: header, payload, checksum, one frame after the other.
//!
//! A payload goes out of pages and into pages in steps that are summed up just
//! after the system has copied them, while they are in a core's cache.

use std::{
    hint::spin_loop,
    io,
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::{set_socket_recv_buffer_size, set_tcp_congestion},
};

use super::{incoming::Receiver, outgoing::Sender};
use crate::transport::{Checksum, Closer, FrameReceiver, FrameSender, Link, PathError, socket::Socket};

/// How long to try again before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);

/// How often to pause before looking again.
const PAUSES: u32 = 32;

/// Not at all, for `poll`.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Bytes of a step: little enough to stay in a core's cache, large against a call of the system.
pub const STEP: usize = 128 << 10;

/// Bytes that may wait in a socket of one host: what does not fit into the cores' caches is read
/// from memory once more.
const WAITING_BYTES: usize = 1 << 20;

/// How the system avoids congestion within one host, where there is none: BBR, which may be its
/// usual way, holds segments back by a timer and takes a fifth of the sender's time for it.
const UNPACED: &str = "reno";

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
    Ok(Link { end: Box::new(Sender::new(sockets, checksum, stall)), closer })
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
    Ok(Link { end: Box::new(Receiver::new(sockets, checksum, stall)), closer })
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
pub fn patiently(
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
