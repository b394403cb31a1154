//! The prefill node's machine of one handoff. No I/O, no clock.
//!
//! ```text
//! Waiting ──Started──> Sending ──COMMIT─────────────────────> closed
//!    │                    │
//!    └──ABORT, LATER, COMMIT{drop}, refused, failed──> Stopped ──quiet, and the receiver has closed──> closed
//! ```
//! The machine stays until the *receiver* has closed the handoff (COMMIT, LATER
//! or ABORT), so that both sides' digests of open handoffs agree exactly. Its
//! guard of the pages is let go the moment it stops; every frame under way has
//! its own.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use baton_protocol::{
    Digest, ErrorCode, Failure, FrameHeader, HandoffId, KvSource, KvSpan,
    wire::{self, control::Message},
};

use super::{coverage::Coverage, plan::Cut};
use crate::{BusyReason, Progress, Queue, metrics::Outcome};

/// What never changes during a handoff.
#[derive(Clone, Debug)]
pub struct SenderTerms {
    /// Which handoff.
    pub id: HandoffId,
    /// How KV is cut into frames.
    pub cut: Cut,
    /// How often one frame is sent again.
    pub max_repeats: u32,
    /// Tokens to be sent.
    pub tokens: Range<u32>,
}

/// What can happen to a sender.
pub enum SenderEvent {
    /// The engine took the prompt.
    Accepted(Queue),
    /// The engine did not take it.
    Refused(BusyReason),
    /// News from the engine.
    Progress(Progress),
    /// No more news will come.
    ProgressEnded,
    /// CREDIT: so many more frames may be sent.
    Credit(u32),
    /// LATER: the receiver has no pages after all.
    Later,
    /// COMMIT.
    Commit {
        /// The KV is not needed.
        drop: bool,
    },
    /// NACK: send this frame again.
    Nack(u32),
    /// ABORT.
    Abort,
    /// A frame has left; its checksum.
    Sent {
        /// Which.
        seq: u32,
        /// crc32c of its payload.
        crc: u32,
    },
    /// A frame was taken out of the line after [`SenderAction::Unqueue`].
    Skipped,
    /// The pages of a frame could not be read.
    Unreadable,
    /// The session is gone, and with it everything in it.
    SessionDown,
}

/// What a sender wants done, in order.
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box a message would cost more")]
pub enum SenderAction {
    /// Say this to the receiver.
    Send(Message),
    /// Put a frame in line; its checksum is made while it leaves. Answered by
    /// exactly one `Sent`, `Skipped` or `Unreadable`.
    Frame(FrameHeader, Arc<dyn KvSource>),
    /// Take all frames of this handoff out of the line, with one `Skipped` each.
    Unqueue,
    /// Let go of the engine's guard.
    Cancel,
    /// The handoff is over.
    Close(Outcome),
}

/// One handoff's sending end.
pub struct Sender {
    terms: SenderTerms,
    state: State,
    /// What the engine has reported, of `terms.tokens`.
    computed: Coverage,
    /// Frames not yet in line.
    waiting: VecDeque<KvSpan>,
    /// Frames put in line so far, by seq.
    frames: Vec<Frame>,
    credit: u32,
    /// Frames in line or being written, repeats included.
    under_way: usize,
    written: usize,
    digest: Digest,
    repaired: u64,
    late: u64,
}

struct Frame {
    span: KvSpan,
    written: bool,
    under_way: bool,
    /// Asked for again while under way.
    again: bool,
    repeats: u32,
}

enum State {
    Waiting,
    Sending { source: Arc<dyn KvSource>, computed_all: bool, fin: bool },
    Stopped { outcome: Outcome, answer: bool, receiver_closed: bool },
    Closed,
}

// === impl Sender ===

impl Sender {
    /// A handoff that was just asked for.
    pub fn new(terms: SenderTerms) -> Self {
        Self {
            computed: Coverage::new(terms.cut.shape.layers, terms.tokens.clone(), terms.cut.all_heads()),
            state: State::Waiting,
            waiting: VecDeque::new(),
            frames: Vec::new(),
            credit: 0,
            under_way: 0,
            written: 0,
            digest: Digest::default(),
            repaired: 0,
            late: 0,
            terms,
        }
    }

    /// Takes an event; the actions are to be done in order.
    pub fn on(&mut self, event: SenderEvent) -> Vec<SenderAction> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            SenderEvent::Accepted(queue) => out.push(self.queued(queue)),
            SenderEvent::Refused(busy) => self.refuse(busy, out),
            SenderEvent::Progress(progress) => self.progress(progress, out),
            SenderEvent::ProgressEnded => self.progress_ended(out),
            SenderEvent::Credit(frames) => self.credit(frames, out),
            SenderEvent::Later => self.close(Outcome::Later, false, out),
            SenderEvent::Commit { drop } => self.commit(drop, out),
            SenderEvent::Nack(seq) => self.repeat(seq, out),
            SenderEvent::Abort => self.close(Outcome::Cancelled, true, out),
            SenderEvent::Sent { seq, crc } => self.sent(seq, crc, out),
            SenderEvent::Skipped => self.quieter(out),
            SenderEvent::Unreadable => {
                self.quieter(out);
                self.fail("computed pages could not be read", out);
            }
            SenderEvent::SessionDown => self.session_down(out),
        }
        actions
    }

    /// Whether the receiver has not closed the handoff yet; what digests count.
    pub fn is_open(&self) -> bool {
        match self.state {
            State::Waiting | State::Sending { .. } => true,
            State::Stopped { receiver_closed, .. } => !receiver_closed,
            State::Closed => false,
        }
    }

    /// Frames sent again.
    pub fn repaired(&self) -> u64 {
        self.repaired
    }

    /// Messages that came too late or made no sense any more.
    pub fn late(&self) -> u64 {
        self.late
    }

    fn wire_id(&self) -> Option<wire::HandoffId> {
        Some(self.terms.id.into())
    }

    fn queued(&self, queue: Queue) -> SenderAction {
        let eta_ms = u64::try_from(queue.eta.as_millis()).unwrap_or(u64::MAX);
        SenderAction::Send(Message::Queued(wire::Queued {
            id: self.wire_id(),
            position: queue.position,
            eta_ms,
        }))
    }

    fn refuse(&mut self, busy: BusyReason, out: &mut Vec<SenderAction>) {
        let eta_ms = u64::try_from(busy.eta.as_millis()).unwrap_or(u64::MAX);
        out.push(SenderAction::Send(Message::Busy(wire::Busy {
            id: self.wire_id(),
            eta_ms,
            reason: busy.reason,
        })));
        self.stop(Outcome::Busy, out);
    }

    fn progress(&mut self, progress: Progress, out: &mut Vec<SenderAction>) {
        match (progress, &mut self.state) {
            // The engine may go on for a moment after a cancel.
            (_, State::Stopped { .. } | State::Closed) => {}
            (Progress::Started { cached_tokens, queue, source }, State::Waiting) => {
                let queue_us = u64::try_from(queue.as_micros()).unwrap_or(u64::MAX);
                self.state = State::Sending { source, computed_all: false, fin: false };
                out.push(SenderAction::Send(Message::Start(wire::Start {
                    id: self.wire_id(),
                    cached_tokens,
                    queue_us,
                })));
            }
            (Progress::Computed { layers, tokens }, State::Sending { .. }) => {
                let from = tokens.start.max(self.terms.tokens.start);
                let span = KvSpan { layers, tokens: from..tokens.end, heads: self.terms.cut.all_heads() };
                if span.tokens.is_empty() {
                    return;
                }
                if !self.computed.insert(&span) {
                    return self.fail("prefill reported a rectangle twice or out of bounds", out);
                }
                self.waiting.extend(self.terms.cut.frames(&span.layers, &span.tokens));
                self.pump(out);
            }
            (Progress::Sampled { tokens, prefill }, State::Sending { .. }) => {
                let prefill_us = u64::try_from(prefill.as_micros()).unwrap_or(u64::MAX);
                let tokens = tokens.into_iter().map(Into::into).collect();
                out.push(SenderAction::Send(Message::First(wire::First {
                    id: self.wire_id(),
                    tokens,
                    prefill_us,
                })));
            }
            (Progress::Done, State::Sending { computed_all, .. }) => {
                *computed_all = true;
                if !self.computed.is_complete() {
                    return self.fail("prefill ended before everything was computed", out);
                }
                self.finish(out);
            }
            (Progress::Failed(failure), _) => self.abort(failure, out),
            _ => self.fail("prefill reported out of order", out),
        }
    }

    fn credit(&mut self, frames: u32, out: &mut Vec<SenderAction>) {
        if !matches!(self.state, State::Sending { .. }) {
            self.late += 1;
            return;
        }
        self.credit = self.credit.saturating_add(frames);
        self.pump(out);
    }

    /// Puts frames in line as far as the receiver's credit goes.
    fn pump(&mut self, out: &mut Vec<SenderAction>) {
        while self.credit > 0 {
            let Some(span) = self.waiting.pop_front() else { break };
            self.credit -= 1;
            self.frames.push(Frame { span, written: false, under_way: false, again: false, repeats: 0 });
            self.put_in_line(self.frames.len() - 1, out);
        }
    }

    fn put_in_line(&mut self, at: usize, out: &mut Vec<SenderAction>) {
        let State::Sending { source, .. } = &self.state else { return };
        let frame = &mut self.frames[at];
        frame.under_way = true;
        self.under_way += 1;
        let header = FrameHeader {
            handoff: self.terms.id,
            seq: u32::try_from(at).unwrap_or(u32::MAX),
            span: frame.span.clone(),
            bytes: u32::try_from(self.terms.cut.shape.span_bytes(&frame.span)).unwrap_or(u32::MAX),
        };
        out.push(SenderAction::Frame(header, source.clone()));
    }

    fn sent(&mut self, seq: u32, crc: u32, out: &mut Vec<SenderAction>) {
        let mut again = false;
        if let Some(frame) = self.frames.get_mut(seq as usize) {
            frame.under_way = false;
            again = std::mem::take(&mut frame.again);
            if !std::mem::replace(&mut frame.written, true) {
                self.written += 1;
                self.digest.add(seq, crc);
            }
        }
        self.quieter(out);
        if again {
            self.repeat(seq, out);
        }
        self.finish(out);
    }

    /// FIN, once everything is computed and written.
    fn finish(&mut self, out: &mut Vec<SenderAction>) {
        let State::Sending { computed_all: true, fin, .. } = &mut self.state else { return };
        if !*fin && self.waiting.is_empty() && self.written == self.frames.len() {
            *fin = true;
            let frames = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
            let fin = wire::Fin { id: self.wire_id(), frames, digest: self.digest.0 };
            out.push(SenderAction::Send(Message::Fin(fin)));
        }
    }

    fn repeat(&mut self, seq: u32, out: &mut Vec<SenderAction>) {
        let sending = matches!(self.state, State::Sending { .. });
        match self.frames.get_mut(seq as usize) {
            // The receiver can be faster than the word that the frame has left.
            Some(frame) if sending && frame.under_way => frame.again = true,
            Some(frame) if sending && frame.repeats >= self.terms.max_repeats => {
                self.abort(Failure::new(ErrorCode::PeerLost, "a frame does not get through"), out);
            }
            Some(frame) if sending => {
                frame.repeats += 1;
                self.repaired += 1;
                self.put_in_line(seq as usize, out);
            }
            // An inquiry in a long silence: it has not been sent yet.
            None if sending => {}
            _ => self.late += 1,
        }
    }

    fn commit(&mut self, drop: bool, out: &mut Vec<SenderAction>) {
        if drop {
            return self.close(Outcome::Dropped, true, out);
        }
        match self.state {
            State::Sending { fin: true, .. } => self.close(Outcome::Committed, false, out),
            // Nobody can have everything before FIN: the receiver is wrong about something.
            _ => self.close(Outcome::Lost, false, out),
        }
    }

    /// The receiver has closed the handoff; `answer` is whether it waits for QUIESCED.
    fn close(&mut self, how: Outcome, answer: bool, out: &mut Vec<SenderAction>) {
        self.stop(how, out);
        if let State::Stopped { answer: owed, receiver_closed, .. } = &mut self.state {
            if *receiver_closed {
                self.late += 1;
            }
            *owed |= answer;
            *receiver_closed = true;
        }
        self.settle(out);
    }

    fn progress_ended(&mut self, out: &mut Vec<SenderAction>) {
        if !matches!(self.state, State::Sending { computed_all: true, .. }) {
            self.fail("prefill ended without a word", out);
        }
    }

    fn fail(&mut self, reason: &str, out: &mut Vec<SenderAction>) {
        self.abort(Failure::new(ErrorCode::Internal, reason), out);
    }

    /// Tells the receiver that nothing more will come.
    fn abort(&mut self, failure: Failure, out: &mut Vec<SenderAction>) {
        if matches!(self.state, State::Waiting | State::Sending { .. }) {
            let (code, reason) = (failure.code.as_str().to_owned(), failure.message);
            out.push(SenderAction::Send(Message::Abort(wire::Abort { id: self.wire_id(), code, reason })));
            self.stop(Outcome::Lost, out);
        }
    }

    /// Lets go of the pages and of everything in line. Keeps the first outcome.
    fn stop(&mut self, outcome: Outcome, out: &mut Vec<SenderAction>) {
        if matches!(self.state, State::Waiting | State::Sending { .. }) {
            self.waiting.clear();
            self.state = State::Stopped { outcome, answer: false, receiver_closed: false };
            out.push(SenderAction::Cancel);
            if self.under_way > 0 {
                out.push(SenderAction::Unqueue);
            }
        }
    }

    fn quieter(&mut self, out: &mut Vec<SenderAction>) {
        self.under_way = self.under_way.saturating_sub(1);
        self.settle(out);
    }

    /// QUIESCED when nothing is under way; closed when the receiver has closed too.
    fn settle(&mut self, out: &mut Vec<SenderAction>) {
        let State::Stopped { outcome, answer, receiver_closed } = &mut self.state else { return };
        if self.under_way > 0 {
            return;
        }
        let (outcome, closed, owed) = (*outcome, *receiver_closed, std::mem::take(answer));
        if owed {
            let frames = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
            out.push(SenderAction::Send(Message::Quiesced(wire::Quiesced { id: self.wire_id(), frames })));
        }
        if closed {
            self.state = State::Closed;
            out.push(SenderAction::Close(outcome));
        }
    }

    fn session_down(&mut self, out: &mut Vec<SenderAction>) {
        self.stop(Outcome::Lost, out);
        if let State::Stopped { outcome, .. } = self.state {
            self.state = State::Closed;
            out.push(SenderAction::Close(outcome));
        }
    }
}
