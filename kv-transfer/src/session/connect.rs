//! Opens a session to a prefill node: HELLO, WELCOME, data path.

use std::sync::Arc;

use baton_protocol::wire::{Control, Refuse, control::Message, prefill_client::PrefillClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    client::KvPeer,
    control::opening,
    hello::{check_welcome, hello},
    paths,
    receiving::Receiving,
};
use crate::{
    LocalNode, SessionError, TransferConfig, TransferMetrics,
    transport::{FrameReceiver, Link, metered, offer::Transports},
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
    transports: &Transports,
    metrics: &TransferMetrics,
    peer: &KvPeer,
) -> Result<Opened, SessionError> {
    let failed = |reason: String| SessionError::Connect { node: peer.node.0.clone(), reason };
    let callee = local.trust.callee(&peer.control_addr, &[peer.role].into())?;
    let channel = callee.connect().await.map_err(|error| failed(describe(&error)))?;
    let (outbound, messages) = mpsc::channel(STREAM_MESSAGES);
    let greeting = opening(Message::Hello(hello(local, config, transports, peer)));
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
    let terms = check_welcome(local, config, peer, &welcome)?;
    let (link, path) = paths::connect(transports, &terms, &welcome).await.map_err(failed)?;
    let link = metered::receiver(link, metrics.clone());
    let parties = (peer.node.clone(), local.clone());
    let state = Receiving::new(terms.session, parties, config.clone(), path, metrics.clone());
    Ok(Opened { state, inbound, outbound, link })
}

/// tonic's transport errors say what happened only in their sources.
fn describe(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
