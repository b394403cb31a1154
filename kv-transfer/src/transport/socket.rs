//! A data socket: open, or inside TLS where `transfer.tls` asks for it.
//!
//! It is opened by a task, which may wait for many peers at once, and then
//! belongs to the one thread that reads or writes frames.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::TcpStream,
};

use baton_protocol::Role;
use baton_trust::Trust;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::net::TcpStream as AsyncStream;
use tokio_rustls::{
    TlsStream,
    rustls::{ClientConnection, ServerConnection, Stream, StreamOwned},
};
use tokio_util::either::Either;

/// A socket whose peer has shown its certificate, if it needs one.
pub type Opening = Either<AsyncStream, TlsStream<AsyncStream>>;

/// Pieces that the system takes at once.
const MAX_PIECES: usize = 1024;

/// A socket for one blocking thread.
pub enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// The end that was dialled.
    Accepted(Box<StreamOwned<ServerConnection, TcpStream>>),
    /// The end that dialled.
    Connected(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Whose sockets they are: KV goes back, too, and a secret ties each to its session.
const NODES: [Role; 2] = [Role::Prefill, Role::Decode];

/// The sending end; `tls` has the certificates if it is to be encrypted.
///
/// # Errors
/// When the peer is no node of the cluster with KV, or leaves.
pub async fn accept(socket: AsyncStream, tls: Option<&Trust>) -> io::Result<Opening> {
    match tls {
        None => Ok(Either::Left(socket)),
        Some(trust) => Ok(Either::Right(trust.accept(socket, &NODES).await?)),
    }
}

/// The receiving end, as [`accept`].
///
/// # Errors
/// As [`accept`].
pub async fn connect(socket: AsyncStream, tls: Option<&Trust>) -> io::Result<Opening> {
    match tls {
        None => Ok(Either::Left(socket)),
        Some(trust) => Ok(Either::Right(trust.connect(socket, &NODES).await?)),
    }
}

// === impl Socket ===

impl Socket {
    /// Hands the socket over from its task to a thread.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn from_opening(opening: Opening) -> io::Result<Self> {
        // What TLS has read ahead stays in the connection.
        Ok(match opening {
            Either::Left(socket) => Self::Plain(socket.into_std()?),
            Either::Right(TlsStream::Server(stream)) => {
                let (socket, tls) = stream.into_inner();
                Self::Accepted(Box::new(StreamOwned::new(tls, socket.into_std()?)))
            }
            Either::Right(TlsStream::Client(stream)) => {
                let (socket, tls) = stream.into_inner();
                Self::Connected(Box::new(StreamOwned::new(tls, socket.into_std()?)))
            }
        })
    }

    /// Writes what there is room for. Bytes of an open socket may wait for `more` that follow,
    /// so that they leave in full segments.
    ///
    /// # Errors
    /// As `write_vectored`.
    pub fn send(&mut self, pieces: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return self.write_vectored(pieces) };
        let now = &pieces[..pieces.len().min(MAX_PIECES)];
        let more = more || now.len() < pieces.len();
        let flags = if more { SendFlags::MORE } else { SendFlags::empty() };
        Ok(sendmsg(socket, now, &mut SendAncillaryBuffer::default(), flags | SendFlags::NOSIGNAL)?)
    }

    /// What is below TLS.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Accepted(tls) => tls.get_ref(),
            Self::Connected(tls) => tls.get_ref(),
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buf),
            Self::Accepted(tls) => tls.read(buf),
            Self::Connected(tls) => tls.read(buf),
        }
    }

    fn read_vectored(&mut self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read_vectored(pieces),
            Self::Accepted(tls) => tls.read_vectored(pieces),
            Self::Connected(tls) => tls.read_vectored(pieces),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    /// rustls's owned stream would take the first piece alone.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(pieces),
            Self::Accepted(tls) => Stream { conn: &mut tls.conn, sock: &mut tls.sock }.write_vectored(pieces),
            Self::Connected(tls) => {
                Stream { conn: &mut tls.conn, sock: &mut tls.sock }.write_vectored(pieces)
            }
        }
    }

    /// TLS may hold the last bytes back until here.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Accepted(tls) => tls.flush(),
            Self::Connected(tls) => tls.flush(),
        }
    }
}
