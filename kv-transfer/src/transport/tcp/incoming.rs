//! Frames that arrive, each straight into its pages.

use std::{
    io::{IoSliceMut, Read},
    time::Duration,
};

use baton_protocol::{FrameHeader, frame::HEADER_BYTES};
use rustix::event::PollFlags;

use super::frames::{STEP, patiently};
use crate::transport::{
    Checksum, FrameReceiver, PathError, Placement, Received, checksum::Crc, decode, land, socket::Socket,
};

/// A checksum and a header.
const TAIL_BYTES: usize = 4 + HEADER_BYTES;

/// The receiving end.
pub struct Receiver {
    sockets: Vec<Incoming>,
    turn: usize,
    checksum: Checksum,
}

/// A socket that frames come from.
struct Incoming {
    socket: Socket,
    stall: Duration,
    /// What comes behind a payload: the checksum that was told, and the next header, which is
    /// taken along where it is there already.
    tail: [u8; TAIL_BYTES],
    /// Bytes of it that have come.
    held: usize,
}

// === impl Receiver ===

impl Receiver {
    /// Over sockets that are set up, at least one.
    pub fn new(sockets: Vec<Socket>, checksum: Checksum, stall: Duration) -> Self {
        // There is no frame before the first one.
        let incoming = |socket| Incoming { socket, stall, tail: [0; TAIL_BYTES], held: 4 };
        Self { sockets: sockets.into_iter().map(incoming).collect(), turn: 0, checksum }
    }
}

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let Self { sockets, turn, checksum } = self;
        let socket = &mut sockets[*turn];
        let header = decode(&socket.header()?)?;
        let mut left = header.bytes as usize;
        let received = land(header, place, |pieces| {
            let mut crc = checksum.begin();
            if let Some(pieces) = pieces {
                socket.fill(pieces, true, &mut crc)?;
            } else {
                let mut scratch = [0; STEP];
                while left > STEP {
                    socket.fill(&mut [IoSliceMut::new(&mut scratch)], false, &mut crc)?;
                    left -= STEP;
                }
                socket.fill(&mut [IoSliceMut::new(&mut scratch[..left])], true, &mut crc)?;
            }
            Ok((crc.value(), socket.told()))
        })?;
        *turn = (*turn + 1) % sockets.len();
        Ok(received)
    }
}

// === impl Incoming ===

impl Incoming {
    /// Waits as long as it takes for a header to begin, but not inside one.
    fn header(&mut self) -> Result<[u8; HEADER_BYTES], PathError> {
        while self.held < TAIL_BYTES {
            let (tail, limit) = (&mut self.tail[self.held..], (self.held > 4).then_some(self.stall));
            self.held += patiently(&mut self.socket, PollFlags::IN, limit, |socket| socket.read(tail))?;
        }
        self.held = 0;
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&self.tail[4..]);
        Ok(header)
    }

    /// The checksum that came behind the last payload.
    fn told(&self) -> u32 {
        u32::from_le_bytes([self.tail[0], self.tail[1], self.tail[2], self.tail[3]])
    }

    /// Fills `pieces` and adds them to `crc`. Behind the `last` ones of a payload comes what was told.
    fn fill(&mut self, pieces: &mut [IoSliceMut<'_>], last: bool, crc: &mut Crc) -> Result<(), PathError> {
        let Self { socket, stall, tail, held } = self;
        let steps = pieces.iter_mut().flat_map(|piece| piece.chunks_mut(STEP));
        let mut steps: Vec<_> = steps.map(IoSliceMut::new).collect();
        let mut payload: usize = steps.iter().map(|step| step.len()).sum();
        if last {
            steps.push(IoSliceMut::new(tail));
        }
        let mut rest = &mut steps[..];
        while payload > 0 || (last && *held < 4) {
            let mut bytes = 0;
            let more = |step: &&IoSliceMut<'_>| {
                bytes += step.len();
                bytes - step.len() < STEP
            };
            let count = rest.iter().take_while(more).count();
            let read = patiently(socket, PollFlags::IN, Some(*stall), |socket| {
                socket.read_vectored(&mut rest[..count])
            })?;
            let mut fresh = read.min(payload);
            (payload, *held) = (payload - fresh, *held + read - fresh);
            for step in rest.iter() {
                let len = fresh.min(step.len());
                crc.update(&step[..len]);
                fresh -= len;
                if fresh == 0 {
                    break;
                }
            }
            IoSliceMut::advance_slices(&mut rest, read);
        }
        Ok(())
    }
}
