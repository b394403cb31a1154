//! Frames over UCX: InfiniBand and RoCE where a node has them, shared memory
//! and TCP elsewhere.
//!
//! A frame travels as active messages of at most 256 KiB, its steps, several
//! under way at once. UCX tells the receiver of a step before its bytes come
//! (rendezvous), so that it can say where they go. They leave from staging, which
//! belongs to one path, is registered once and goes with its worker; on one host
//! they arrive in pages: there a thread of this process copies them, and nothing
//! can land once that thread has ended the worker. Devices that write into memory
//! by themselves see staging alone.
//!
//! UCX trusts whoever reaches it, so it goes no further than loopback without
//! certificates, or where frames are to be encrypted, which it cannot do.
//!
//! It is opened for the first path and closed with the last, so that a node that
//! uses it for nothing has none of its threads.
//!
//! - [`context`]: which devices there are; registered memory
//! - [`worker`]: one end of a path; [`flight`]: a step on its way; [`bell`]: what closes it
//! - [`inbox`]: what UCX calls back with
//! - [`head`]: what a message says beside its bytes

mod bell;
mod context;
mod flight;
mod head;
mod inbox;
#[cfg(test)]
pub mod tests;
mod worker;

use std::{collections::VecDeque, sync::Arc};

use baton_protocol::{FrameHeader, HandoffId, KvSource};
use baton_trust::Trust;
use tokio::task::spawn_blocking;

use super::{
    Closer, FrameReceiver, FrameSender, Link, PathError, Placement, Received, decode, land,
    offer::{Rendezvous, Terms, Transport},
    read_pieces, shm,
};
use crate::{SessionError, TransferConfig, hex, metrics::Side};
use bell::Bell;
use context::OnDemand;
pub use context::Reach;
use worker::{Posted, Worker};

/// Longest address of a worker; with many devices one has some hundred bytes.
const MAX_ADDRESS_BYTES: usize = 16 << 10;

/// UCX as one side of a node uses it.
pub struct Ucx {
    place: String,
    context: Arc<OnDemand>,
    staged: bool,
}

/// A path whose receiver has not come yet.
struct Waiting {
    worker: Worker,
    terms: Terms,
}

struct Sender {
    worker: Worker,
    terms: Terms,
    /// Frames that were announced before they are sent, oldest first.
    begun: VecDeque<(HandoffId, u32, Posted)>,
}

struct Receiver {
    worker: Worker,
    terms: Terms,
}

/// Ends a path that nobody waits for any more.
struct RingUnlessKept(Option<Arc<Bell>>);

/// The row of this transport.
///
/// # Errors
/// Never: where UCX finds nothing to use, sessions say so.
pub fn transport(
    config: &TransferConfig,
    trust: &Trust,
    _: Side,
) -> Result<Arc<dyn Transport>, SessionError> {
    let beyond = trust.is_certified() && !config.tls && !config.data_listen.ip().is_loopback();
    Ok(Arc::new(Ucx::new(if beyond { Reach::Network } else { Reach::Host })))
}

// === impl Ucx ===

impl Ucx {
    /// UCX with the devices within reach.
    pub fn new(reach: Reach) -> Self {
        let place = match reach {
            Reach::Host => shm::meet::place(),
            Reach::Network => "network".to_owned(),
        };
        Self { place, context: Arc::new(OnDemand::new(reach)), staged: reach == Reach::Network }
    }

    async fn worker(&self, terms: &Terms) -> Result<Worker, PathError> {
        let (context, secret, staged) = (self.context.clone(), terms.secret, self.staged);
        let made = spawn_blocking(move || Worker::new(&context.open()?, secret, staged)).await;
        made.map_err(|_| PathError::Closed)?
    }
}

#[tonic::async_trait]
impl Transport for Ucx {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let worker = self.worker(terms).await?;
        Ok((hex(worker.address()), Box::new(Waiting { worker, terms: terms.clone() })))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let malformed = || PathError::Unavailable { reason: "no address of UCX".to_owned() };
        let address = unhex(addr).ok_or_else(malformed)?;
        let mut worker = self.worker(terms).await?;
        let (bell, limit) = (worker.bell(), terms.config.connect_timeout());
        let guard = RingUnlessKept(Some(bell.clone()));
        let called = spawn_blocking(move || worker.call(&address, limit).map(|()| worker)).await;
        let worker = called.map_err(|_| PathError::Closed)??;
        guard.keep();
        let end = Box::new(Receiver { worker, terms: terms.clone() });
        Ok(Link { end, closer: Closer::new(move || bell.ring()) })
    }
}

/// The bytes that [`hex`] has written.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    if digits.is_empty() || digits.len() > 2 * MAX_ADDRESS_BYTES || !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.as_bytes().chunks(2).map(byte).collect()
}

// === impl Waiting ===

#[tonic::async_trait]
impl Rendezvous for Waiting {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let Self { mut worker, terms } = *self;
        let (bell, limit) = (worker.bell(), terms.config.handshake_timeout());
        let guard = RingUnlessKept(Some(bell.clone()));
        let answered = spawn_blocking(move || worker.answer(limit).map(|()| worker)).await;
        let worker = answered.map_err(|_| PathError::Closed)??;
        guard.keep();
        let end = Box::new(Sender { worker, terms, begun: VecDeque::new() });
        Ok(Link { end, closer: Closer::new(move || bell.ring()) })
    }
}

// === impl Sender ===

impl Sender {
    fn post(
        &mut self,
        header: &FrameHeader,
        source: &dyn KvSource,
        told: Option<u32>,
    ) -> Result<Posted, PathError> {
        let Self { worker, terms, .. } = self;
        let (told, stall) = ((terms.checksum, told), terms.config.stall_timeout());
        read_pieces(header, source, |pieces| worker.post(&header.encode(), pieces, told, stall))
    }
}

impl FrameSender for Sender {
    fn ahead(&self) -> usize {
        1
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        if self.worker.has_room(header.bytes as usize)? {
            match self.post(header, &**source, None) {
                Ok(posted) => self.begun.push_back((header.handoff, header.seq, posted)),
                // The session hears of it when it is to be sent.
                Err(PathError::Unreadable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let is = |begun: &(HandoffId, u32, Posted)| (begun.0, begun.1) == (header.handoff, header.seq);
        let posted = match self.begun.iter().position(is).and_then(|at| self.begun.remove(at)) {
            Some((_, _, posted)) => posted,
            None => self.post(header, &**source, told)?,
        };
        self.worker.finish(posted, self.terms.config.stall_timeout())?;
        Ok(posted.told)
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let Self { worker, terms } = self;
        let header = decode(&worker.begin()?)?;
        let (bytes, stall) = (header.bytes as usize, terms.config.stall_timeout());
        land(header, place, |pieces| {
            let mut crc = terms.checksum.begin();
            let told = worker.land(bytes, pieces, &mut |step| crc.update(step), stall)?;
            Ok((crc.value(), told))
        })
    }
}

// === impl RingUnlessKept ===

impl RingUnlessKept {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RingUnlessKept {
    fn drop(&mut self) {
        if let Some(bell) = self.0.take() {
            bell.ring();
        }
    }
}
