//! Opens a session to a prefill node: HELLO, WELCOME, data path.

use std::sync::Arc;

use baton_protocol::{
    Role,
    wire::{Control, Refuse, Welcome, control::Message, prefill_client::PrefillClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    client::PrefillPeer,
    control::opening,
    hello::{check_welcome, hello},
    receiving::Receiving,
};
use crate::{
    LocalNode, SessionError, TransferConfig, TransferMetrics, TransportKind,
    transport::{FrameReceiver, Link, inproc, metered, socket, tcp},
};

/// Control messages between the outbox and the stream.
pub const STREAM_MESSAGES: usize = 8;

/// A session whose both paths are open.
pub struct Opened {
    pub state: Arc<Receiving>,
    pub inbound: Streaming<Control>,
    pub outbound: mpsc::Sender<Control>,
    pub link: Link<dyn FrameReceiver>,
}

/// Opens a session. The caller limits the time.
pub async fn open(
    local: &LocalNode,
    config: &TransferConfig,
    metrics: &TransferMetrics,
    peer: &PrefillPeer,
) -> Result<Opened, SessionError> {
    let failed = |reason: String| SessionError::Connect { node: peer.node.0.clone(), reason };
    if config.tls && !local.trust.is_certified() {
        return Err(SessionError::NoCertificates);
    }
    let endpoint = local.trust.endpoint(&peer.control_addr, &[Role::Prefill].into())?;
    let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| failed(describe(&error)))?;
    let (outbound, messages) = mpsc::channel(STREAM_MESSAGES);
    let greeting = opening(Message::Hello(hello(local, config, peer)));
    outbound.send(greeting).await.map_err(|_| failed("control stream closed".to_owned()))?;
    let answer = PrefillClient::new(channel).session(ReceiverStream::new(messages)).await;
    let mut inbound = answer.map_err(|status| failed(status.message().to_owned()))?.into_inner();
    let first = inbound.message().await.map_err(|status| failed(status.message().to_owned()))?;
    let welcome = match first.and_then(|control| control.message) {
        Some(Message::Welcome(welcome)) => welcome,
        // Told from the other side.
        Some(Message::Refuse(Refuse { field, mine, yours })) => {
            return Err(SessionError::Refused { field, mine: yours, yours: mine });
        }
        _ => return Err(failed("no WELCOME".to_owned())),
    };
    let (session, chosen) = check_welcome(local, config, peer, &welcome)?;
    let link = match chosen.transport {
        TransportKind::Inproc => inproc::connect(&welcome.data_addr)
            .ok_or_else(|| failed("in-process path is not in this process".to_owned()))?,
        TransportKind::Tcp => connect_tcp(local, config, &welcome).await.map_err(|error| match error {
            DataError::Session(error) => error,
            DataError::Io(error) => failed(format!("data socket: {error}")),
        })?,
    };
    let link = metered::receiver(link, metrics.clone());
    let state = Receiving::new(session, peer.node.clone(), local.clone(), config.clone(), metrics.clone());
    Ok(Opened { state, inbound, outbound, link })
}

enum DataError {
    Session(SessionError),
    Io(std::io::Error),
}

impl From<std::io::Error> for DataError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

async fn connect_tcp(
    local: &LocalNode,
    config: &TransferConfig,
    welcome: &Welcome,
) -> Result<Link<dyn FrameReceiver>, DataError> {
    let trust = &local.trust;
    let addr = trust.gate().parse(&welcome.data_addr).map_err(|error| DataError::Session(error.into()))?;
    let secret: [u8; 32] =
        welcome.data_secret[..].try_into().map_err(|_| std::io::Error::other("secret of another size"))?;
    let socket = TcpStream::connect(addr).await?;
    let mut socket = socket::connect(socket, config.data_tls(trust)).await?;
    socket.write_all(&tcp::encode_hello(baton_protocol::SessionId(welcome.session), &secret)).await?;
    socket.flush().await?;
    let taken = socket.read_u8().await?;
    if taken != tcp::TAKEN {
        return Err(std::io::Error::other("not taken").into());
    }
    Ok(tcp::receiver(socket::Socket::from_opening(socket)?, config.stall_timeout())?)
}

/// tonic's transport errors say what happened only in their sources.
fn describe(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
