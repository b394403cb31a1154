//! The receiver's half that deals with frames: where they land, whether they
//! are right, what is missing, and when everything is in.

use std::time::Instant;

use baton_protocol::{FrameHeader, wire, wire::control::Message};

use super::{
    HandoffEvent,
    missing::{Due, is_silent},
    receiver::{Receiver, ReceiverAction, State},
};
use crate::{metrics::Outcome, transport::Received};

type Actions = Vec<ReceiverAction>;

impl Receiver {
    pub(super) fn arriving(&mut self, header: &FrameHeader, now: Instant, out: &mut Actions) {
        match self.state {
            State::Receiving => {}
            State::Waiting => return self.distrust("frame without credit", out),
            State::Closing { .. } | State::Closed => return,
        }
        if let Some(reason) = self.wrong(header) {
            return self.distrust(reason, out);
        }
        let seq = header.seq;
        if seq < self.frames.next && !self.frames.missing.contains(seq) {
            // A repeat of something that came after all.
            return;
        }
        if self.frames.reading.iter().any(|(reading, _)| *reading == seq) {
            // A repeat of something that is about to.
            return self.frames.reading.push((seq, false));
        }
        if !self.frames.coverage.is_free(&header.span) {
            return self.distrust("frame overlaps another one", out);
        }
        for gap in self.frames.next..seq {
            self.ask_again(gap, "overtaken", now, out);
            if self.state != State::Receiving {
                return;
            }
        }
        self.frames.missing.expect(seq, now);
        self.frames.next = self.frames.next.max(seq.saturating_add(1));
        self.frames.reading.push((seq, true));
        self.frames.began.get_or_insert(now);
        if let Some(sink) = &self.sink {
            out.push(ReceiverAction::Land(sink.clone()));
        }
    }

    /// What no honest sender would send.
    fn wrong(&self, header: &FrameHeader) -> Option<&'static str> {
        let (span, shape) = (&header.span, &self.terms.shape);
        if !self.frames.coverage.contains(span) {
            return Some("frame out of bounds");
        }
        if header.bytes as usize != shape.span_bytes(span) {
            return Some("frame of another shape");
        }
        let last = self.frames.fin.map_or(self.frames.granted, |(frames, _)| frames);
        (header.seq >= last).then_some("frame beyond the credit")
    }

    pub(super) fn arrived(&mut self, received: &Received, now: Instant, out: &mut Actions) {
        let header = &received.header;
        let at = self.frames.reading.iter().position(|(reading, _)| *reading == header.seq);
        let Some((_, into_pages)) = at.map(|at| self.frames.reading.remove(at)) else { return };
        if self.state != State::Receiving {
            return self.settle(out);
        }
        if !into_pages {
            return;
        }
        if !received.intact {
            return self.ask_again(header.seq, "damaged", now, out);
        }
        if !self.frames.coverage.insert(&header.span) {
            return self.distrust("frame overlaps another one", out);
        }
        self.frames.missing.found(header.seq);
        self.frames.digest.add(header.seq, received.crc);
        self.frames.landed += 1;
        self.frames.ended = Some(now);
        self.stats.bytes += u64::from(header.bytes);
        if self.frames.fin.is_none() {
            self.frames.granted = self.frames.granted.saturating_add(1);
            self.send_credit(1, out);
        }
        self.complete(now, out);
    }

    pub(super) fn fin(&mut self, fin: &wire::Fin, now: Instant, out: &mut Actions) {
        if fin.frames < self.frames.next || fin.frames > self.frames.granted {
            return self.distrust("FIN does not fit the frames", out);
        }
        if self.terms.wants_first && self.first.is_none() {
            return self.distrust("FIN before the first token", out);
        }
        self.frames.fin = Some((fin.frames, fin.digest));
        // Control may overtake data: those not seen yet get the repair timeout to come by themselves.
        for seq in self.frames.next..fin.frames {
            self.frames.missing.expect(seq, now);
        }
        self.frames.next = fin.frames;
        self.complete(now, out);
    }

    pub(super) fn tick(&mut self, moved: Instant, now: Instant, out: &mut Actions) {
        if self.state != State::Receiving || !self.frames.reading.is_empty() {
            return;
        }
        for seq in self.frames.missing.overdue(self.terms.repair_timeout, moved, now) {
            self.ask_again(seq, "overdue", now, out);
        }
        self.inquire(moved, now, out);
    }

    /// If every frame of a window is lost, no later one shows the gap. So in a
    /// long silence the next frame is asked for: a sender that has not sent it
    /// yet ignores that, and one that sends in vain gives up.
    fn inquire(&mut self, moved: Instant, now: Instant, out: &mut Actions) {
        let known = self.frames.fin.is_some() || !self.frames.missing.is_empty();
        let since = *self.frames.inquired.get_or_insert(now);
        if self.state == State::Receiving && !known && is_silent(since, self.terms.repair_timeout, moved, now)
        {
            self.frames.inquired = Some(now);
            let nack = wire::Nack { id: self.wire_id(), seq: self.frames.next };
            out.push(ReceiverAction::Send(Message::Nack(nack)));
        }
    }

    /// `state` is what the frame is found to be now.
    fn ask_again(&mut self, seq: u32, state: &str, now: Instant, out: &mut Actions) {
        if self.state != State::Receiving {
            return;
        }
        match self.frames.missing.ask(seq, self.terms.max_nacks, now) {
            Due::Nack(seq) => {
                self.stats.repaired_frames += 1;
                out.push(ReceiverAction::Send(Message::Nack(wire::Nack { id: self.wire_id(), seq })));
            }
            Due::GiveUp(seq) => {
                let asked = self.terms.max_nacks;
                self.in_vain = true;
                self.lose(&format!("frame {seq} is {state}, asked for again {asked} times"), out);
            }
        }
    }

    /// Ready, if everything is in and right. Nothing else leads to Ready.
    fn complete(&mut self, now: Instant, out: &mut Actions) {
        let Some((frames, digest)) = self.frames.fin else { return };
        if self.frames.landed < frames {
            return;
        }
        if digest != self.frames.digest.0 {
            return self.distrust("digest of the frames differs", out);
        }
        if !self.frames.coverage.is_complete() {
            return self.distrust("frames do not cover the prompt", out);
        }
        let Some(sink) = self.sink.take() else { return };
        if let (Some(began), Some(ended)) = (self.frames.began, self.frames.ended) {
            self.stats.transfer = ended.saturating_duration_since(began);
        }
        self.stats.exposed =
            self.first.map_or_else(Default::default, |first| now.saturating_duration_since(first));
        self.state = State::Closed;
        let commit = wire::Commit { id: self.wire_id(), drop: false };
        out.push(ReceiverAction::Send(Message::Commit(commit)));
        out.push(ReceiverAction::Emit(HandoffEvent::Ready { sink, stats: self.stats }));
        out.push(ReceiverAction::Close(Outcome::Committed));
    }
}
