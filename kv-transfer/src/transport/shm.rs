//! A ring of memory that two processes of one host share.
//!
//! The sender copies pages into the ring, the receiver out of it into its own
//! pages, both at once and in small steps, so that the ring stays in the
//! processor's cache. It lives in a memfd that nobody can shrink, and goes with
//! the last of the two processes: there is nothing stale to be found. Nobody
//! else's pages are ever mapped. Every frame begins with a cache line of its own.
//!
//! - [`ring`]: positions, waiting and waking
//! - [`map`]: the mapping itself
//! - [`meet`]: how the memfd comes to the receiver

pub mod map;
pub mod meet;
pub mod ring;

use std::{sync::Arc, time::Duration};

use baton_protocol::{FrameHeader, KvSource, frame::HEADER_BYTES};
use baton_trust::Trust;

use super::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, PathError, Placement, Received, checksum, decode,
    land,
    offer::{Rendezvous, Terms, Transport},
    read_pieces,
};
use crate::{SessionError, TransferConfig, metrics::Side};
use map::{LINE, Map};
use ring::{Consumer, Producer};

/// A header, up to the end of a cache line: so payloads of whole lines fill lines of the ring.
const HEAD_BYTES: usize = HEADER_BYTES.next_multiple_of(LINE);

/// A checksum.
const TOLD_BYTES: usize = 4;

struct Shm {
    place: String,
}

struct Sender {
    ring: Producer,
    checksum: Checksum,
}

struct Receiver {
    ring: Consumer,
    checksum: Checksum,
}

/// The row of this transport.
///
/// # Errors
/// Never: where there is no shared memory, sessions say so.
pub fn transport(_: &TransferConfig, _: &Trust, _: Side) -> Result<Arc<dyn Transport>, SessionError> {
    // Those alone understand each other who begin frames at lines.
    Ok(Arc::new(Shm { place: format!("{}/lines", meet::place()) }))
}

/// The sending end over one mapping of a ring, used by no other sender.
pub fn sender(map: Map, checksum: Checksum, stall: Duration) -> Link<dyn FrameSender> {
    let ring = Producer::new(Arc::new(map), stall);
    let closing = ring.closing();
    Link { end: Box::new(Sender { ring, checksum }), closer: Closer::new(move || closing.close()) }
}

/// The receiving end over another mapping of the same ring.
pub fn receiver(map: Map, checksum: Checksum, stall: Duration) -> Link<dyn FrameReceiver> {
    let ring = Consumer::new(Arc::new(map), stall);
    let closing = ring.closing();
    Link { end: Box::new(Receiver { ring, checksum }), closer: Closer::new(move || closing.close()) }
}

/// A checksum behind a payload, up to the end of a line.
fn tail_bytes(payload: u32) -> usize {
    let bytes = payload as usize;
    (bytes + TOLD_BYTES).next_multiple_of(LINE) - bytes
}

// === impl Shm ===

#[tonic::async_trait]
impl Transport for Shm {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let (addr, meeting) = meet::Meeting::new(terms)?;
        Ok((addr, Box::new(meeting)))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let map = meet::join(terms, addr).await?;
        Ok(receiver(map, terms.checksum, terms.config.stall_timeout()))
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let Self { ring, checksum } = self;
        read_pieces(header, &**source, |pieces| {
            let mut crc = checksum.begin();
            let mut head = [0; HEAD_BYTES];
            head[..HEADER_BYTES].copy_from_slice(&header.encode());
            ring.write(&head)?;
            for step in pieces.iter().flat_map(|piece| piece.chunks(checksum::STEP)) {
                crc.update(step);
                ring.write(step)?;
            }
            let told = told.unwrap_or_else(|| crc.value());
            let mut tail = [0; 2 * LINE];
            tail[..TOLD_BYTES].copy_from_slice(&told.to_le_bytes());
            ring.write(&tail[..tail_bytes(header.bytes)])?;
            ring.publish();
            Ok(told)
        })
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let Self { ring, checksum } = self;
        let mut header = [0; HEADER_BYTES];
        ring.begin()?;
        ring.read(&mut header)?;
        let header = decode(&header)?;
        let (bytes, tail) = (header.bytes as usize, tail_bytes(header.bytes));
        land(header, place, |pieces| {
            ring.read(&mut [0; HEAD_BYTES - HEADER_BYTES])?;
            let (mut crc, mut told, mut rest) = (checksum.begin(), [0; TOLD_BYTES], [0; LINE]);
            // What is summed up is the private copy, which the peer cannot change any more.
            let mut take = |step: &mut [u8]| {
                ring.read(step)?;
                crc.update(step);
                Ok::<_, PathError>(())
            };
            match pieces {
                Some(pieces) => {
                    pieces
                        .iter_mut()
                        .flat_map(|piece| piece.chunks_mut(checksum::STEP))
                        .try_for_each(take)?;
                }
                None => {
                    let mut scratch = [0; checksum::STEP];
                    (0..bytes)
                        .step_by(checksum::STEP)
                        .try_for_each(|at| take(&mut scratch[..(bytes - at).min(checksum::STEP)]))?;
                }
            }
            ring.read(&mut told)?;
            ring.read(&mut rest[..tail - TOLD_BYTES])?;
            Ok((crc.value(), u32::from_le_bytes(told)))
        })
    }
}
