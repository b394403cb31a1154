//! A socket of its own for the frames of a session.
//!
//! The receiver connects to the sender's data listener and says which session
//! it belongs to, proved by the session's secret. Payloads are written straight
//! out of pages and read straight into pages.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::Shutdown,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource, SessionId, frame::HEADER_BYTES};

use super::{
    Closer, Crc, FrameReceiver, FrameSender, Link, MAX_FRAME_BYTES, PathError, Placement, Received,
    check_size, socket::Socket,
};

/// Bytes that open a data socket: magic, session, secret.
pub const HELLO_BYTES: usize = 44;

/// The listener's answer when it took the socket.
pub const TAKEN: u8 = 1;

const HELLO_MAGIC: [u8; 4] = *b"BTNd";
const SCRATCH_BYTES: usize = 64 << 10;

struct Sender {
    socket: Socket,
}

struct Receiver {
    socket: Socket,
    scratch: Box<[u8]>,
}

/// What the receiver says first on a data socket.
pub fn encode_hello(session: SessionId, secret: &[u8; 32]) -> [u8; HELLO_BYTES] {
    let mut out = [0; HELLO_BYTES];
    out[..4].copy_from_slice(&HELLO_MAGIC);
    out[4..12].copy_from_slice(&session.0.to_le_bytes());
    out[12..].copy_from_slice(secret);
    out
}

/// The session and secret of a data socket's first bytes.
pub fn decode_hello(bytes: &[u8; HELLO_BYTES]) -> Option<(SessionId, [u8; 32])> {
    let (mut session, mut secret) = ([0; 8], [0; 32]);
    session.copy_from_slice(&bytes[4..12]);
    secret.copy_from_slice(&bytes[12..]);
    (bytes[..4] == HELLO_MAGIC).then_some((SessionId(u64::from_le_bytes(session)), secret))
}

/// The sending end over a socket that has said hello.
///
/// # Errors
/// When the socket cannot be set up.
pub fn sender(socket: impl Into<Socket>, stall: Duration) -> io::Result<Link<dyn FrameSender>> {
    let socket = socket.into();
    let closer = prepare(&socket, stall)?;
    Ok(Link { end: Box::new(Sender { socket }), closer })
}

/// The receiving end over a socket that has said hello.
///
/// # Errors
/// When the socket cannot be set up.
pub fn receiver(socket: impl Into<Socket>, stall: Duration) -> io::Result<Link<dyn FrameReceiver>> {
    let socket = socket.into();
    let closer = prepare(&socket, stall)?;
    let scratch = vec![0; SCRATCH_BYTES].into_boxed_slice();
    Ok(Link { end: Box::new(Receiver { socket, scratch }), closer })
}

fn prepare(socket: &Socket, stall: Duration) -> io::Result<Closer> {
    let socket = socket.tcp();
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(stall))?;
    socket.set_read_timeout(Some(stall))?;
    let other = socket.try_clone()?;
    Ok(Closer::new(move || {
        // An error means that the socket is down already.
        let _ = other.shutdown(Shutdown::Both);
    }))
}

/// Whether a system call should simply be made again.
fn interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn stalled(error: io::Error) -> PathError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => PathError::Stalled,
        io::ErrorKind::UnexpectedEof => PathError::Closed,
        _ => PathError::Io(error),
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn send(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        let head = header.encode();
        let socket = &mut self.socket;
        let written = source.read(&header.span, &mut |payload| {
            if payload.iter().map(|piece| piece.len()).sum::<usize>() != header.bytes as usize {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(payload.len() + 1);
            pieces.push(IoSlice::new(&head));
            pieces.extend_from_slice(payload);
            write_all(socket, &mut pieces)?;
            socket.flush()
        });
        written.map_err(stalled)
    }
}

fn write_all(socket: &mut Socket, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !pieces.is_empty() {
        match socket.write_vectored(pieces) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(written) => IoSlice::advance_slices(&mut pieces, written),
            Err(error) if interrupted(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let header = FrameHeader::decode(&self.header()?)?;
        if header.bytes > MAX_FRAME_BYTES {
            return Err(PathError::TooLarge { bytes: header.bytes });
        }
        let begun = Instant::now();
        let crc = match place(&header) {
            Placement::Discard => self.discard(header.bytes)?,
            Placement::Land(sink) => {
                let socket = &mut self.socket;
                let (mut started, mut crc) = (false, Crc::new());
                let landed = sink.write(&header.span, &mut |pieces| {
                    check_size(pieces, &header)?;
                    started = true;
                    read_all(socket, pieces, &mut crc)
                });
                match landed {
                    Ok(()) => Some(crc.value()),
                    Err(error) if started => return Err(stalled(error)),
                    // The sink has no such memory: the payload must still leave the socket.
                    Err(_) => self.discard(header.bytes)?.and(None),
                }
            }
        };
        let intact = crc == Some(header.crc);
        Ok(Received { header, intact, duration: begun.elapsed() })
    }
}

impl Receiver {
    /// Waits as long as it takes for a header to begin, but not inside one.
    fn header(&mut self) -> Result<[u8; HEADER_BYTES], PathError> {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        while at < HEADER_BYTES {
            match self.socket.read(&mut bytes[at..]) {
                Ok(0) => return Err(PathError::Closed),
                Ok(read) => at += read,
                Err(error) if interrupted(&error) || (at == 0 && timed_out(&error)) => {}
                Err(error) => return Err(stalled(error)),
            }
        }
        Ok(bytes)
    }

    fn discard(&mut self, bytes: u32) -> Result<Option<u32>, PathError> {
        let (mut left, mut crc) = (bytes as usize, Crc::new());
        while left > 0 {
            let piece = &mut self.scratch[..left.min(SCRATCH_BYTES)];
            self.socket.read_exact(piece).map_err(stalled)?;
            crc.update(piece);
            left -= piece.len();
        }
        Ok(Some(crc.value()))
    }
}

/// Fills `pieces` and adds them to `crc` while they are still in the cache.
fn read_all(socket: &mut Socket, mut pieces: &mut [IoSliceMut<'_>], crc: &mut Crc) -> io::Result<()> {
    while !pieces.is_empty() {
        let read = match socket.read_vectored(pieces) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if interrupted(&error) => continue,
            Err(error) => return Err(error),
        };
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
