//! Frames that leave: as many at once as one write takes.

use std::{
    collections::VecDeque,
    io::{IoSlice, Write},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{FrameHeader, KvSource};
use rustix::event::PollFlags;

use super::frames::{STEP, patiently};
use crate::transport::{Checksum, FrameSender, PathError, read_pieces, socket::Socket};

/// Bytes written at once. Between cores that share a cache, loopback carried a quarter more with 1 MiB than
/// with 256 KiB (BENCHMARKS.md); with less than that it ran at half its speed more often; why is not known.
const WRITE: usize = 1 << 20;

/// Payload of a frame that may wait for the next one. What loopback carries at once is 64 KiB: of
/// frames as large as that, waiting would only keep the receiver.
const SMALL: u32 = 16 << 10;

/// Frames that leave together at most: each is read inside the reading of the one before.
const TOGETHER: usize = 16;

/// The sending end.
pub struct Sender {
    sockets: Vec<Socket>,
    turn: usize,
    checksum: Checksum,
    stall: Duration,
    /// Frames that were announced and whose `send` has not come yet.
    begun: VecDeque<Frame>,
    /// What was told of the first of them, which have left together with one before.
    left: VecDeque<u32>,
    /// The checksum of the frame that left last, if it goes with the next one.
    owed: Option<[u8; 4]>,
}

type Frame = (FrameHeader, Arc<dyn KvSource>);

// === impl Sender ===

impl Sender {
    /// Over sockets that are set up, at least one.
    pub fn new(sockets: Vec<Socket>, checksum: Checksum, stall: Duration) -> Self {
        let (begun, left) = (VecDeque::new(), VecDeque::new());
        Self { sockets, turn: 0, checksum, stall, begun, left, owed: None }
    }

    /// Over several sockets the next frame takes another one.
    fn is_alone(&self) -> bool {
        self.sockets.len() == 1
    }

    /// A frame and those begun that leave with it. Frames of a device's pages leave one by one: each is
    /// copied into a buffer of its own.
    fn together(&self, first: Frame) -> Vec<Frame> {
        let mut bytes = 0;
        let mut fits = |(header, source): &Frame| {
            bytes += header.bytes as usize;
            bytes <= WRITE && matches!(source.on_device(&header.span), Ok(None))
        };
        let has_room = self.is_alone() && fits(&first);
        let others = self.begun.iter().take_while(|frame| has_room && fits(frame));
        [first].into_iter().chain(others.cloned()).take(TOGETHER).collect()
    }

    /// Writes `before` and frames behind it, and adds to `told` what it tells of each; of the first that is
    /// `given`, if it is. All but the last are summed up before, so that their checksums leave in the same write.
    fn leave(
        &mut self,
        frames: &[Frame],
        before: &[IoSlice<'_>],
        given: Option<u32>,
        told: &mut VecDeque<u32>,
    ) -> Result<(), PathError> {
        let [(header, source), others @ ..] = frames else { return Ok(()) };
        read_pieces(header, &**source, |pieces| {
            let head = header.encode();
            let start = [before, &[IoSlice::new(&head)]].concat();
            if !others.is_empty() {
                let sum = given.unwrap_or_else(|| self.checksum.of_pieces(pieces));
                let tail = sum.to_le_bytes();
                told.push_back(sum);
                let all = [&start[..], pieces, &[IoSlice::new(&tail)]].concat();
                match self.leave(others, &all, None, told) {
                    // The next one cannot be read, and nothing was written.
                    Err(PathError::Unreadable(_)) => drop(told.pop_back()),
                    left => return left,
                }
            }
            let follows = self.is_alone() && self.begun.len() > told.len();
            told.push_back(self.leave_last(start, pieces, given, (header.bytes <= SMALL, follows))?);
            Ok(())
        })
    }

    /// Writes what stands before a payload, and the payload, which is summed up just after the system has
    /// copied it. The checksum leaves behind it, or with the frame that follows.
    fn leave_last<'a>(
        &mut self,
        mut step: Vec<IoSlice<'a>>,
        pieces: &'a [IoSlice<'a>],
        given: Option<u32>,
        (is_small, follows): (bool, bool),
    ) -> Result<u32, PathError> {
        let (mut crc, mut unsummed, mut room) = (self.checksum.begin(), Vec::new(), WRITE);
        for piece in pieces.iter().flat_map(|piece| piece.chunks(STEP)) {
            if piece.len() > room {
                self.write_all(&mut step, false)?;
                unsummed.drain(..).for_each(|piece| crc.update(piece));
                step.clear();
                room = WRITE;
            }
            step.push(IoSlice::new(piece));
            unsummed.push(piece);
            room -= piece.len();
        }
        if follows || !is_small {
            self.write_all(&mut step, follows && is_small)?;
            step.clear();
        }
        unsummed.drain(..).for_each(|piece| crc.update(piece));
        let told = given.unwrap_or_else(|| crc.value());
        let last = told.to_le_bytes();
        if follows {
            self.owed = Some(last);
        } else {
            self.end([step, vec![IoSlice::new(&last)]].concat())?;
        }
        Ok(told)
    }

    /// Writes what nothing may follow for long.
    fn end(&mut self, mut pieces: Vec<IoSlice<'_>>) -> Result<(), PathError> {
        self.write_all(&mut pieces, false)?;
        // TLS may hold the last bytes back until here.
        let socket = &mut self.sockets[self.turn];
        patiently(socket, PollFlags::OUT, Some(self.stall), |socket| socket.flush().map(|()| 1)).map(drop)
    }

    fn write_all(&mut self, mut pieces: &mut [IoSlice<'_>], more: bool) -> Result<(), PathError> {
        let socket = &mut self.sockets[self.turn];
        while !pieces.is_empty() {
            let write = |socket: &mut Socket| socket.send(pieces, more);
            let written = patiently(socket, PollFlags::OUT, Some(self.stall), write)?;
            IoSlice::advance_slices(&mut pieces, written);
        }
        Ok(())
    }
}

impl FrameSender for Sender {
    /// As many as leave in one write, and one more, with whose beginning the last checksum leaves.
    fn ahead(&self) -> usize {
        let bytes: usize = self.begun.iter().map(|(header, _)| header.bytes as usize).sum();
        let has_room = bytes <= WRITE && self.begun.len() <= TOGETHER;
        let most = if has_room { self.begun.len().max(1) } else { 1 };
        if self.is_alone() { most } else { 0 }
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        self.begun.push_back((header.clone(), source.clone()));
        Ok(())
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        drop(self.begun.pop_front());
        if let Some(told) = self.left.pop_front() {
            return Ok(told);
        }
        let (frames, owed) = (self.together((header.clone(), source.clone())), self.owed.take());
        let before: Vec<_> = owed.iter().map(|owed| IoSlice::new(owed)).collect();
        let mut tolds = VecDeque::new();
        let left = self.leave(&frames, &before, told, &mut tolds);
        if matches!(left, Err(PathError::Unreadable(_))) && owed.is_some() {
            self.end(before)?;
        }
        left?;
        self.turn = (self.turn + 1) % self.sockets.len();
        let told = tolds.pop_front().ok_or(PathError::Closed)?;
        self.left = tolds;
        Ok(told)
    }
}
