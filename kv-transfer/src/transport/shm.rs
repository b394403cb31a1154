//! A ring of memory that two processes of one host share.
//!
//! The sender copies pages into the ring, the receiver out of it into its own
//! pages, both at once and in small steps, so that the ring stays in the
//! processor's cache. It lives in a memfd that nobody can shrink, and goes with
//! the last of the two processes: there is nothing stale to be found. Nobody
//! else's pages are ever mapped.
//!
//! - [`ring`]: positions, waiting and waking
//! - [`map`]: the mapping itself
//! - [`meet`]: how the memfd comes to the receiver

pub mod map;
pub mod meet;
pub mod ring;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource, frame::HEADER_BYTES};
use baton_trust::Trust;

use super::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, MAX_FRAME_BYTES, PathError, Placement, Received,
    check_size,
    checksum::Crc,
    offer::{Rendezvous, Terms, Transport},
};
use crate::{SessionError, TransferConfig, metrics::Side};
use map::Map;
use ring::{Consumer, Producer};

struct Shm {
    place: String,
}

struct Sender {
    ring: Producer,
}

struct Receiver {
    ring: Consumer,
    checksum: Checksum,
    /// For frames that go into the bit bucket.
    scratch: Box<[u8]>,
}

/// The row of this transport.
///
/// # Errors
/// Never: where there is no shared memory, sessions say so.
pub fn transport(_: &TransferConfig, _: &Trust, _: Side) -> Result<Arc<dyn Transport>, SessionError> {
    Ok(Arc::new(Shm { place: meet::place() }))
}

/// The sending end over one mapping of a ring, used by no other sender.
pub fn sender(map: Map, stall: Duration) -> Link<dyn FrameSender> {
    let ring = Producer::new(Arc::new(map), stall);
    let closing = ring.closing();
    Link { end: Box::new(Sender { ring }), closer: Closer::new(move || closing.close()) }
}

/// The receiving end over another mapping of the same ring.
pub fn receiver(map: Map, checksum: Checksum, stall: Duration) -> Link<dyn FrameReceiver> {
    let ring = Consumer::new(Arc::new(map), stall);
    let closing = ring.closing();
    let scratch = vec![0; ring::STEP].into_boxed_slice();
    Link { end: Box::new(Receiver { ring, checksum, scratch }), closer: Closer::new(move || closing.close()) }
}

// === impl Shm ===

#[tonic::async_trait]
impl Transport for Shm {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
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
    fn send(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        let ring = &mut self.ring;
        let mut broken = None;
        let read = source.read(&header.span, &mut |payload| {
            if payload.iter().map(|piece| piece.len()).sum::<usize>() != header.bytes as usize {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let written = ring.write(&header.encode()).and_then(|()| {
                payload.iter().try_for_each(|piece| ring.write(piece))?;
                ring.publish();
                Ok(())
            });
            broken = written.err();
            Ok(())
        });
        broken.map_or_else(|| Ok(read?), Err)
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let mut header = [0; HEADER_BYTES];
        self.ring.begin()?;
        self.ring.read(&mut header)?;
        let header = FrameHeader::decode(&header)?;
        if header.bytes > MAX_FRAME_BYTES {
            return Err(PathError::TooLarge { bytes: header.bytes });
        }
        let begun = Instant::now();
        let mut crc = self.checksum.begin();
        let mut whole = true;
        match place(&header) {
            Placement::Discard => self.discard(header.bytes, &mut crc)?,
            Placement::Land(sink) => {
                let (ring, mut outcome) = (&mut self.ring, None);
                let landed = sink.write(&header.span, &mut |pieces| {
                    check_size(pieces, &header)?;
                    outcome = Some(pieces.iter_mut().try_for_each(|piece| land(ring, piece, &mut crc)));
                    Ok(())
                });
                match outcome {
                    Some(read) => read?,
                    // The sink has no such memory: the payload must still leave the ring.
                    None => self.discard(header.bytes, &mut crc)?,
                }
                whole = landed.is_ok();
            }
        }
        self.ring.publish();
        let intact = whole && crc.value() == header.crc;
        Ok(Received { header, intact, duration: begun.elapsed() })
    }
}

impl Receiver {
    fn discard(&mut self, bytes: u32, crc: &mut Crc) -> Result<(), PathError> {
        let mut left = bytes as usize;
        while left > 0 {
            let size = left.min(self.scratch.len());
            land(&mut self.ring, &mut self.scratch[..size], crc)?;
            left -= size;
        }
        Ok(())
    }
}

/// Reads in steps and adds each to `crc` while it is in the cache: what is
/// checked is the private copy, which the peer cannot change any more.
fn land(ring: &mut Consumer, piece: &mut [u8], crc: &mut Crc) -> Result<(), PathError> {
    for step in piece.chunks_mut(ring::STEP) {
        ring.read(step)?;
        crc.update(step);
    }
    Ok(())
}
