//! Frames over UCX: InfiniBand and RoCE where a node has them, shared memory
//! and TCP elsewhere.
//!
//! A frame travels as active messages of at most 256 KiB, its steps, several
//! under way at once. UCX tells the receiver of a step before its bytes come
//! (rendezvous), so that it can say where they go. On one host they go from
//! pages to pages: there a thread of this process copies them, and nothing can
//! land once that thread has ended the worker. Devices that write into memory
//! by themselves see staging alone, which belongs to one path, is registered
//! once and goes with its worker.
//!
//! UCX trusts whoever reaches it, so it goes no further than loopback without
//! certificates, or where frames are to be encrypted, which it cannot do.
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

use std::{io, sync::Arc, time::Instant};

use baton_protocol::{FrameHeader, KvSource};
use baton_trust::Trust;
use tokio::task::spawn_blocking;

use super::{
    Closer, FrameReceiver, FrameSender, Link, MAX_FRAME_BYTES, PathError, Placement, Received, check_size,
    offer::{Rendezvous, Terms, Transport},
    shm,
};
use crate::{SessionError, TransferConfig, hex, metrics::Side};
use bell::Bell;
use context::Context;
pub use context::Reach;
use worker::Worker;

/// Longest address of a worker; with many devices one has some hundred bytes.
const MAX_ADDRESS_BYTES: usize = 16 << 10;

/// UCX as one side of a node uses it.
pub struct Ucx {
    place: String,
    /// Or why there is none.
    context: Result<Arc<Context>, String>,
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
        let context = Context::new(reach).map(Arc::new).map_err(|error| error.to_string());
        Self { place, context, staged: reach == Reach::Network }
    }

    fn worker(&self, terms: &Terms) -> Result<Worker, PathError> {
        let unavailable = |reason: &String| PathError::Unavailable { reason: reason.clone() };
        Worker::new(self.context.as_ref().map_err(unavailable)?, terms.secret, self.staged)
    }
}

#[tonic::async_trait]
impl Transport for Ucx {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let worker = self.worker(terms)?;
        Ok((hex(worker.address()), Box::new(Waiting { worker, terms: terms.clone() })))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let malformed = || PathError::Unavailable { reason: "no address of UCX".to_owned() };
        let address = unhex(addr).ok_or_else(malformed)?;
        let mut worker = self.worker(terms)?;
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
        let end = Box::new(Sender { worker, terms });
        Ok(Link { end, closer: Closer::new(move || bell.ring()) })
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn send(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        let (worker, stall) = (&mut self.worker, self.terms.config.stall_timeout());
        let mut broken = None;
        let read = source.read(&header.span, &mut |payload| {
            if payload.iter().map(|piece| piece.len()).sum::<usize>() != header.bytes as usize {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            broken = worker.send(&header.encode(), payload, stall).err();
            Ok(())
        });
        broken.map_or_else(|| Ok(read?), Err)
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let header = FrameHeader::decode(&self.worker.begin()?)?;
        if header.bytes > MAX_FRAME_BYTES {
            return Err(PathError::TooLarge { bytes: header.bytes });
        }
        let begun = Instant::now();
        let mut crc = self.terms.checksum.begin();
        let (worker, bytes) = (&mut self.worker, header.bytes as usize);
        let stall = self.terms.config.stall_timeout();
        let mut outcome = None;
        let mut whole = true;
        if let Placement::Land(sink) = place(&header) {
            let landed = sink.write(&header.span, &mut |pieces| {
                check_size(pieces, &header)?;
                outcome = Some(worker.land(bytes, Some(pieces), &mut |step| crc.update(step), stall));
                Ok(())
            });
            whole = landed.is_ok();
        }
        match outcome {
            Some(landed) => landed?,
            // The bit bucket, or a sink without such memory: the payload must still leave the path.
            None => worker.land(bytes, None, &mut |step| crc.update(step), stall)?,
        }
        let intact = whole && crc.value() == header.crc;
        Ok(Received { header, intact, duration: begun.elapsed() })
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
