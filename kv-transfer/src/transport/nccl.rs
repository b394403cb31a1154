//! A pair of cards joined by NCCL, on one host or two.
//!
//! A frame is announced over a socket, the receiver answers that it has posted its
//! half, and both post send and receive in that one order: from staging to staging,
//! with a gather before and a scatter after, so that pages are never NCCL's. Frames
//! in line are announced together and posted in one launch, for which NCCL needs a
//! hundred microseconds in a thread of its own: nobody waits for that who has something
//! else to do. Gathers and scatters have streams of their own beside it.
//! What was announced is posted by both whatever became of its handoff; that of a
//! dead one is scattered into scratch. The communicator is the session's own:
//! aborting it when the path ends touches nobody else.
//!
//! - `outgoing`, `incoming`: frames
//! - `joined`: what the two ends have in common

mod incoming;
mod joined;
mod outgoing;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Context,
    time::Duration,
};

use baton_kernels::cuda::{Gpu, Nccl, nccl::ID_BYTES};
use baton_protocol::frame::HEADER_BYTES;
use baton_trust::{Gate, Listener, ReachError, Trust};
use tokio::io::AsyncWriteExt;

use super::{
    FrameReceiver, FrameSender, Link, PathError,
    caller::caller,
    card::meet::{card, limits, made},
    offer::{Rendezvous, Terms, Transport},
};
use crate::{SessionError, TransferConfig, TransportKind, Wanted, config::CARD_FRAMES, metrics::Side};
pub use incoming::receiver;
pub use outgoing::sender;

/// What the sender tells first: the name to join by, and the size of its largest frame.
const INVITATION_BYTES: usize = ID_BYTES + 8;

/// A header and the frame's checksum.
const FRAME_BYTES: usize = HEADER_BYTES + 4;

/// Frames in staging at once: with 16, launches wait for one another (BENCHMARKS.md, *Two cards of one host*).
const SLOTS: usize = CARD_FRAMES as usize;

/// The receiver's answer to a header.
const POSTED: u8 = 1;

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

/// The row of this transport.
///
/// # Errors
/// When it is not named, this node's pages are not on a card, there is no NCCL that can be used, data is to be
/// encrypted, the configured address may not be listened on, or NCCL would listen on one that may not be.
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
    if gate != Gate::Certificates && !on_loopback(std::env::var("NCCL_SOCKET_IFNAME").ok().as_deref()) {
        let reason = "set NCCL_SOCKET_IFNAME=lo in the environment: NCCL listens on sockets of its own, and \
                      without certificates nothing is reached from other hosts";
        return Err(not_here(reason.to_owned()));
    }
    Ok(Arc::new(NcclCard { gpu, version, gate, listen: listen.ip() }))
}

/// Whether these interfaces are loopback's alone; without any, NCCL takes the first that is not.
fn on_loopback(interfaces: Option<&str>) -> bool {
    matches!(interfaces, Some("lo" | "=lo"))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: ReachError) -> PathError {
    PathError::Unavailable { reason: error.to_string() }
}

/// Time to join: the session has other paths to open too.
fn join_limit(config: &TransferConfig) -> Duration {
    config.connect_timeout() * 2 / 3
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
