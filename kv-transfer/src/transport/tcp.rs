//! Sockets of their own for the frames of a session.
//!
//! The receiver connects to the sender's data listener and says which session
//! it belongs to, proved by the session's secret. Payloads are written straight
//! out of pages and read straight into pages. Frames go over the session's
//! sockets in turn, so that their order needs no words.
//!
//! - [`listener`]: takes sockets that know a session's secret
//! - [`frames`]: a path over them; [`outgoing`], [`incoming`]: its ends

pub mod frames;
mod incoming;
pub mod listener;
mod outgoing;

use std::sync::Arc;

use baton_protocol::SessionId;
use baton_trust::{Gate, Trust};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use super::{
    FrameReceiver, FrameSender, Link, PathError,
    offer::{Rendezvous, Terms, Transport},
    socket::{self, Socket},
};
use crate::{SessionError, TransferConfig, metrics::Side};
pub use frames::{receiver, sender};
use listener::{Expectation, Expected};

/// Bytes that open a data socket: magic, session, secret, its place among the session's sockets, their number.
pub const HELLO_BYTES: usize = 46;

/// The listener's answer when it took the socket.
pub const TAKEN: u8 = 1;

/// Most sockets of one session.
pub const MAX_SOCKETS: u8 = 16;

const HELLO_MAGIC: [u8; 4] = *b"BTNd";

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
        tracing::info!(%addr, "data sockets are met");
        tasks.spawn(listener::listen(listener.into_inner(), expected.clone(), config.handshake_timeout()));
        listening = Some((addr, expected));
    }
    Ok(Arc::new(Tcp { gate, tls, listening, _tasks: tasks }))
}

// === impl Tcp ===

#[tonic::async_trait]
impl Transport for Tcp {
    /// Encrypted sockets are another way than open ones.
    fn place(&self) -> String {
        if self.tls.is_some() { "tls".to_owned() } else { String::new() }
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
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
        Ok(sender(sockets, self.terms.checksum, self.terms.config.stall_timeout())?)
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
