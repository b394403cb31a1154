//! Frames that leave: gathered ahead, announced some at a time, posted when they are answered.

use std::{
    collections::VecDeque,
    io,
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use baton_kernels::cuda::{Gpu, Mark, Nccl, nccl::Pair};
use baton_protocol::{FrameHeader, HandoffId, KvSource, frame::HEADER_BYTES};

use super::{
    super::{
        Checksum, FrameSender, Link, PathError,
        card::{Limits, failed, gather::Gather, signals::Signals},
    },
    FRAME_BYTES, ID_BYTES, INVITATION_BYTES, POSTED,
    joined::{deadline, join, marks, signals, wait},
};

struct Sender {
    /// First: what is under way is aborted before anybody waits for it.
    pair: Pair,
    signals: Signals,
    gather: Gather,
    slots: usize,
    next: usize,
    /// Frames being gathered and their slots, oldest first.
    begun: VecDeque<(FrameHeader, usize)>,
    /// Frames that were announced before they are sent, and their checksums, oldest first.
    told: VecDeque<(HandoffId, u32, u32)>,
    /// Slots and sizes of frames that the receiver has not answered yet, oldest first.
    announced: VecDeque<(usize, usize)>,
    /// Slots whose launch may not be enqueued yet.
    posted: Vec<usize>,
    /// Where NCCL's stream is done with the launch that a slot was last in.
    sent: Vec<Mark>,
}

/// The sending end: joins the receiver at the other end of `socket` within `limit`.
///
/// # Errors
/// When there is no NCCL, the card has no room for staging, or the receiver does not join.
pub fn sender(
    gpu: &Gpu,
    socket: TcpStream,
    (limits, limit): (&Limits, Duration),
) -> Result<Link<dyn FrameSender>, PathError> {
    let nccl = Nccl::load().map_err(failed)?;
    let mut signals = signals(socket, limits)?;
    let gather = Gather::new(gpu, limits, limits.slots)?;
    let id = nccl.new_id().map_err(failed)?;
    let mut invitation = [0; INVITATION_BYTES];
    invitation[..ID_BYTES].copy_from_slice(&id);
    invitation[ID_BYTES..].copy_from_slice(&(limits.slot_bytes as u64).to_le_bytes());
    signals.send(&invitation)?;
    let pair = join(nccl, gpu, (&id, false), (&signals, limit))?;
    let closer = signals.closer(Shutdown::Both)?;
    // The one that is nobody's as well.
    let sent = marks(gpu, limits.slots + 1)?;
    let (begun, told, announced) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
    let (slots, posted) = (limits.slots, Vec::new());
    let sender = Sender { pair, signals, gather, slots, next: 0, begun, told, announced, posted, sent };
    Ok(Link { end: Box::new(sender), closer })
}

// === impl Sender ===

impl FrameSender for Sender {
    /// With those that are announced, as many as there are slots.
    fn ahead(&self) -> usize {
        (self.slots / 2).saturating_sub(1)
    }

    fn begin(&mut self, header: &FrameHeader, source: &Arc<dyn KvSource>) -> Result<(), PathError> {
        if self.begun.len() + self.announced.len() >= self.slots {
            return Ok(());
        }
        let slot = self.next;
        match self.gather_into(slot, header, source) {
            // The session hears of it when it is to be sent.
            Err(PathError::Unreadable(_)) => return Ok(()),
            gathered => gathered?,
        }
        self.next = (slot + 1) % self.slots;
        self.begun.push_back((header.clone(), slot));
        Ok(())
    }

    fn checksum(
        &mut self,
        _: Checksum,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<u32, PathError> {
        let spare = self.gather.spare();
        self.gather_into(spare, header, source)?;
        self.finish(spare)
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let told = self.tell(header, source, told);
        // Others wait for their answers also where this one cannot be read.
        if matches!(told, Ok(_) | Err(PathError::Unreadable(_))) {
            let is_last = self.begun.is_empty() && self.told.is_empty();
            self.post(if is_last { 0 } else { self.slots })?;
        }
        told
    }
}

impl Sender {
    /// Begins with a frame in a slot once the frame before has left it.
    fn gather_into(
        &mut self,
        slot: usize,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
    ) -> Result<(), PathError> {
        if self.announced.iter().any(|(announced, _)| *announced == slot) {
            self.post(0)?;
        }
        if self.posted.contains(&slot) {
            self.settle()?;
        }
        self.sent[slot].awaited(self.gather.lane(slot)).map_err(failed)?;
        self.gather.gather(slot, header, source)
    }

    fn finish(&mut self, slot: usize) -> Result<u32, PathError> {
        wait(&self.pair, &mut self.signals, &|| self.gather.is_done(slot))?;
        self.gather.finish(slot)
    }

    /// Announces a frame, if it is not, and with it those that are begun; its checksum. Several at least:
    /// what is announced by itself is answered and posted by itself, too.
    fn tell(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let is = |handoff: HandoffId, seq: u32| (handoff, seq) == (header.handoff, header.seq);
        if let Some(at) = self.told.iter().position(|(handoff, seq, _)| is(*handoff, *seq)) {
            return self.told.remove(at).map(|(.., told)| told).ok_or(PathError::Closed);
        }
        let begun = self.begun.iter().position(|(begun, _)| is(begun.handoff, begun.seq));
        let slot = match begun.and_then(|at| self.begun.remove(at)) {
            Some((_, slot)) => slot,
            None => {
                let spare = self.gather.spare();
                self.gather_into(spare, header, source)?;
                spare
            }
        };
        self.post(self.slots / 4)?;
        let made = self.finish(slot)?;
        let told = told.unwrap_or(made);
        let mut messages = self.announce(slot, header, told).to_vec();
        while self.announced.len() < self.slots / 2
            && let Some((next, slot)) = self.begun.pop_front()
        {
            let told = self.finish(slot)?;
            messages.extend(self.announce(slot, &next, told));
            self.told.push_back((next.handoff, next.seq, told));
        }
        self.signals.send(&messages)?;
        Ok(told)
    }

    /// What tells the receiver of a frame.
    fn announce(&mut self, slot: usize, header: &FrameHeader, told: u32) -> [u8; FRAME_BYTES] {
        let mut message = [0; FRAME_BYTES];
        message[..HEADER_BYTES].copy_from_slice(&header.encode());
        message[HEADER_BYTES..].copy_from_slice(&told.to_le_bytes());
        self.announced.push_back((slot, header.bytes as usize));
        message
    }

    /// Posts what was answered, together what was answered at once, until no more than so many frames are
    /// unanswered.
    fn post(&mut self, unanswered: usize) -> Result<(), PathError> {
        loop {
            let mut answers = 0;
            if self.announced.len() > unanswered {
                let answer = self.signals.wait(false)?;
                answers += self.answered(answer, answers)?;
            }
            // Others come with it.
            while let Some(answer) = self.signals.poll()? {
                answers += self.answered(answer, answers)?;
            }
            if answers == 0 {
                return Ok(());
            }
            let frames: Vec<_> = self.announced.drain(..answers).collect();
            let parts: Vec<_> =
                frames.iter().map(|(slot, bytes)| (self.gather.offset(*slot), *bytes)).collect();
            self.settle()?;
            self.posted.extend(frames.into_iter().map(|(slot, _)| slot));
            let Self { pair, signals, gather, .. } = self;
            pair.send(gather.region(), &parts, &deadline(signals)).map_err(failed)?;
        }
    }

    /// Waits until what was posted is enqueued, and marks where its slots are free again.
    fn settle(&mut self) -> Result<(), PathError> {
        let Self { pair, signals, posted, sent, .. } = self;
        pair.settle(&deadline(signals)).map_err(failed)?;
        posted.drain(..).try_for_each(|slot| pair.mark(&sent[slot])).map_err(failed)
    }

    /// One more answer, after so many that are not posted yet.
    fn answered(&self, answer: [u8; 1], before: usize) -> Result<usize, PathError> {
        if answer != [POSTED] || before >= self.announced.len() {
            return Err(io::Error::other("an answer that is none").into());
        }
        Ok(1)
    }
}
