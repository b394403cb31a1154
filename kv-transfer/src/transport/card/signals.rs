//! Short messages of fixed sizes beside the data of a path.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{io::Errno, net::RecvFlags};
use socket2::Socket;

use crate::transport::{Closer, PathError};

/// How long a wait goes on before somebody looks whether the path was closed.
const NAP: Duration = Duration::from_millis(50);

/// How long a wait does not sleep: waking up would take longer than a frame does.
const SPIN: Duration = Duration::from_micros(50);

/// Bytes taken from the socket at once.
const TAKE_BYTES: usize = 4096;

/// One end of the socket.
pub struct Signals {
    socket: Socket,
    closed: Arc<AtomicBool>,
    stall: Duration,
    /// Received and not yet looked at.
    inbox: Vec<u8>,
}

// === impl Signals ===

impl Signals {
    /// An end that fails after `stall` without progress inside a message.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn new(socket: impl Into<OwnedFd>, stall: Duration) -> io::Result<Self> {
        let socket = Socket::from(socket.into());
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(NAP.min(stall)))?;
        socket.set_write_timeout(Some(stall))?;
        Ok(Self { socket, closed: Arc::default(), stall, inbox: Vec::with_capacity(TAKE_BYTES) })
    }

    /// Ends the path from this side. `way` is what the end does not need for its farewell.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn closer(&self, way: Shutdown) -> io::Result<Closer> {
        let (socket, closed) = (self.socket.try_clone()?, self.closed.clone());
        Ok(Closer::new(move || {
            closed.store(true, Ordering::SeqCst);
            // An error means that the socket is down already.
            let _ = socket.shutdown(way);
        }))
    }

    /// What tells from elsewhere that this end was closed.
    pub fn closed(&self) -> &Arc<AtomicBool> {
        &self.closed
    }

    /// Time without progress that is borne.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the other end is gone or does not read.
    pub fn send(&mut self, message: &[u8]) -> Result<(), PathError> {
        self.socket.write_all(message).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => PathError::Stalled,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => PathError::Closed,
            _ => PathError::Io(error),
        })
    }

    /// The next message if it is there.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn poll<const N: usize>(&mut self) -> Result<Option<[u8; N]>, PathError> {
        if self.inbox.len() < N {
            self.take(RecvFlags::DONTWAIT)?;
        }
        Ok(self.pop())
    }

    /// Whether the other end is still there. Who sends more than anybody waits for is not
    /// listened to meanwhile: what is kept of it is bounded.
    ///
    /// # Errors
    /// When it is gone.
    pub fn look(&mut self) -> Result<(), PathError> {
        if self.inbox.len() < TAKE_BYTES {
            self.take(RecvFlags::DONTWAIT)?;
        }
        Ok(())
    }

    /// Waits for the next message; for ever if `idle` and it has not begun.
    ///
    /// # Errors
    /// When this end was closed, the other end is gone, or it stalls.
    pub fn wait<const N: usize>(&mut self, idle: bool) -> Result<[u8; N], PathError> {
        let begun = Instant::now();
        let mut since = begun;
        loop {
            if let Some(message) = self.pop() {
                return Ok(message);
            }
            if self.closed.load(Ordering::SeqCst) {
                return Err(PathError::Closed);
            }
            let flags = if begun.elapsed() < SPIN { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
            if self.take(flags)? || (idle && self.inbox.is_empty()) {
                since = Instant::now();
            } else if since.elapsed() >= self.stall {
                return Err(PathError::Stalled);
            }
        }
    }

    /// Waits until the other end has gone, but not for long.
    pub fn farewell(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        while Instant::now() < until && self.take(RecvFlags::empty()).is_ok() {
            self.inbox.clear();
        }
    }

    fn pop<const N: usize>(&mut self) -> Option<[u8; N]> {
        let message = *self.inbox.first_chunk::<N>()?;
        self.inbox.drain(..N);
        Some(message)
    }

    /// Takes what the socket has; whether that was anything.
    fn take(&mut self, flags: RecvFlags) -> Result<bool, PathError> {
        let mut bytes = [0; TAKE_BYTES];
        match rustix::net::recv(&self.socket, &mut bytes[..], flags) {
            Ok((0, _)) => Err(PathError::Closed),
            Ok((taken, _)) => {
                self.inbox.extend_from_slice(&bytes[..taken]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::CONNRESET) => Err(PathError::Closed),
            Err(error) => Err(PathError::Io(error.into())),
        }
    }
}
