//! The decode node's machine of one handoff. No I/O; the clock is passed in.
//!
//! ```text
//! Waiting ──START, bound──> Receiving ──all in and right──> Ready, COMMIT, closed
//!    │                          │
//!    └──BUSY, LATER, cancel, ABORT, lost──> Closing ──QUIESCED, or the landing path is gone──> closed
//! ```
//! The guard of the pages is kept until the sender has fallen silent or cannot
//! be heard any more; a frame that is being read holds its own. `Lost` is told
//! only while no frame is being read, so that whole pages can be used at once.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{
    Digest, ErrorCode, Failure, FrameHeader, HandoffId, KvShape, KvSink,
    wire::{self, control::Message},
};

use super::{HandoffEvent, HandoffStats, Landing, coverage::Coverage, missing::Missing};
use crate::{metrics::Outcome, transport::Received};

/// What never changes during a handoff.
#[derive(Clone, Debug)]
pub struct ReceiverTerms {
    /// Which handoff.
    pub id: HandoffId,
    /// Shape of the local KV cache, all heads of the model counted.
    pub shape: KvShape,
    /// Heads to be received: those that this node holds.
    pub heads: Range<u32>,
    /// Tokens to be received.
    pub tokens: Range<u32>,
    /// Whether a first token was asked for.
    pub wants_first: bool,
    /// Frames that may be under way at once.
    pub window_frames: u32,
    /// Silence after which a missing frame is asked for again.
    pub repair_timeout: Duration,
    /// How often one frame is asked for again.
    pub max_nacks: u32,
}

/// What can happen to a receiver.
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box a message would cost more")]
pub enum ReceiverEvent<'a> {
    /// A control message of this handoff.
    Control(Message),
    /// A frame's header is in; answered by at most one `Land`, otherwise discard it.
    Arriving(&'a FrameHeader),
    /// That frame was read to its end, or discarded.
    Arrived(&'a Received),
    /// Time passes.
    Tick {
        /// When the data path of the session last moved.
        moved: Instant,
    },
    /// The caller has gone.
    Cancel,
    /// The caller does not need the KV: the first tokens ended every choice.
    Decline,
    /// The sender does not know this handoff.
    Orphaned,
    /// The session has ended; frames may still be landing.
    SessionDown(Failure),
    /// Nothing of the session can land any more.
    PathClosed,
}

/// What a receiver wants done, in order.
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box a message would cost more")]
pub enum ReceiverAction {
    /// Say this to the sender.
    Send(Message),
    /// Tell the caller.
    Emit(HandoffEvent),
    /// The arriving frame lands here.
    Land(Arc<dyn KvSink>),
    /// The handoff is over.
    Close(Outcome),
}

type Actions = Vec<ReceiverAction>;

/// One handoff's receiving end.
pub struct Receiver {
    pub(super) terms: ReceiverTerms,
    pub(super) state: State,
    pub(super) landing: Option<Box<dyn Landing>>,
    pub(super) sink: Option<Arc<dyn KvSink>>,
    pub(super) frames: Frames,
    pub(super) first: Option<Instant>,
    /// The end is known, but a frame is still being read.
    verdict: Option<Failure>,
    pub(super) stats: HandoffStats,
    queued_told: bool,
    pub(super) late: u64,
    /// Given up since frames did not come, however often they were asked for.
    pub(super) in_vain: bool,
}

/// Which frames are in.
pub(super) struct Frames {
    pub coverage: Coverage,
    /// The lowest number not yet seen.
    pub next: u32,
    /// Numbers below `next`, or below FIN's, that are not in.
    pub missing: Missing,
    /// Frames that are being read, oldest first, and whether into pages: a repeat of one that
    /// is not in yet goes elsewhere.
    pub reading: Vec<(u32, bool)>,
    pub landed: u32,
    /// Frames the sender may number.
    pub granted: u32,
    /// When the next frame was last asked for, not knowing whether it was sent.
    pub inquired: Option<Instant>,
    pub digest: Digest,
    pub fin: Option<(u32, u64)>,
    pub began: Option<Instant>,
    pub ended: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Receiving,
    Closing { outcome: Outcome, quiet: bool },
    Closed,
}

// === impl Receiver ===

impl Receiver {
    /// A handoff whose PREFILL is being sent.
    pub fn new(terms: ReceiverTerms, landing: Box<dyn Landing>) -> Self {
        let frames = Frames {
            coverage: Coverage::new(terms.shape.layers, terms.tokens.clone(), terms.heads.clone()),
            next: 0,
            missing: Missing::default(),
            reading: Vec::new(),
            landed: 0,
            granted: 0,
            inquired: None,
            digest: Digest::default(),
            fin: None,
            began: None,
            ended: None,
        };
        Self {
            terms,
            state: State::Waiting,
            landing: Some(landing),
            sink: None,
            frames,
            first: None,
            verdict: None,
            stats: HandoffStats::default(),
            queued_told: false,
            late: 0,
            in_vain: false,
        }
    }

    /// Takes an event; the actions are to be done in order.
    pub fn on(&mut self, event: ReceiverEvent<'_>, now: Instant) -> Actions {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            ReceiverEvent::Control(message) => self.control(message, now, out),
            ReceiverEvent::Arriving(header) => self.arriving(header, now, out),
            ReceiverEvent::Arrived(received) => self.arrived(received, now, out),
            ReceiverEvent::Tick { moved } => self.tick(moved, now, out),
            ReceiverEvent::Cancel => self.leave(Outcome::Cancelled, out),
            ReceiverEvent::Decline => self.leave(Outcome::Dropped, out),
            ReceiverEvent::Orphaned => self.lose("the prefill node does not know this handoff", out),
            ReceiverEvent::SessionDown(failure) => self.session_down(failure, out),
            ReceiverEvent::PathClosed => self.path_closed(out),
        }
        actions
    }

    /// Whether the handoff is neither committed nor given up; what digests count.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Waiting | State::Receiving)
    }

    /// What people call its state, the tokens whose KV comes, and the bytes that have come.
    pub fn progress(&self) -> (&'static str, &Range<u32>, u64) {
        let state = match self.state {
            State::Waiting => "waiting",
            State::Receiving => "receiving",
            State::Closing { .. } | State::Closed => "closing",
        };
        (state, &self.terms.tokens, self.stats.bytes)
    }

    /// Messages that came too late or made no sense any more.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Whether it was given up, by either side, since frames did not come however often they
    /// were asked for.
    pub fn is_in_vain(&self) -> bool {
        self.in_vain
    }

    /// Frames asked for again.
    pub fn repaired(&self) -> u32 {
        self.stats.repaired_frames
    }

    pub(super) fn wire_id(&self) -> Option<wire::HandoffId> {
        Some(self.terms.id.into())
    }

    fn control(&mut self, message: Message, now: Instant, out: &mut Actions) {
        match message {
            Message::Quiesced(_) => self.quiesced(out),
            _ if !self.is_open() => self.late += 1,
            Message::Queued(queued) => {
                // Once is enough; a peer that repeats itself must not fill the caller's channel.
                if !std::mem::replace(&mut self.queued_told, true) {
                    let eta = Duration::from_millis(queued.eta_ms);
                    out.push(ReceiverAction::Emit(HandoffEvent::Queued { position: queued.position, eta }));
                }
            }
            Message::Busy(busy) if self.state == State::Waiting => {
                let mut failure = Failure::new(ErrorCode::Overloaded, busy.reason);
                failure.retry_after = (busy.eta_ms > 0).then(|| Duration::from_millis(busy.eta_ms));
                self.end(Outcome::Busy, failure, out);
            }
            Message::Start(start) if self.state == State::Waiting => self.start(&start, out),
            Message::First(first) if self.state == State::Receiving && self.first.is_none() => {
                self.first = Some(now);
                self.stats.prefill = Duration::from_micros(first.prefill_us);
                let tokens = first.tokens.into_iter().map(Into::into).collect();
                out.push(ReceiverAction::Emit(HandoffEvent::First(tokens)));
            }
            Message::Fin(fin) if self.state == State::Receiving && self.frames.fin.is_none() => {
                self.fin(&fin, now, out);
            }
            Message::Abort(abort) => {
                let code = abort.code.parse().unwrap_or(ErrorCode::Internal);
                // A sender says that of frames that it has sent again and again; and of pages that turn
                // out not to be the prompt's, where another session does no harm.
                self.in_vain = code == ErrorCode::PeerLost;
                self.end(Outcome::Lost, Failure::new(code, abort.reason), out);
            }
            _ => self.late += 1,
        }
    }

    fn start(&mut self, start: &wire::Start, out: &mut Actions) {
        let sink = self.landing.take().and_then(|mut landing| landing.bind());
        let covers = |sink: &Arc<dyn KvSink>| {
            let (have, want) = (sink.tokens(), &self.terms.tokens);
            have.start <= want.start && want.end <= have.end
        };
        match sink {
            Some(sink) if covers(&sink) => {
                self.sink = Some(sink);
                self.state = State::Receiving;
                self.frames.granted = self.terms.window_frames;
                self.send_credit(self.terms.window_frames, out);
                let (cached_tokens, queue) = (start.cached_tokens, Duration::from_micros(start.queue_us));
                out.push(ReceiverAction::Emit(HandoffEvent::Started { cached_tokens, queue }));
            }
            // LATER closes the handoff; no frame can be under way without credit.
            _ => {
                out.push(ReceiverAction::Send(Message::Later(wire::Later { id: self.wire_id() })));
                self.state = State::Closing { outcome: Outcome::Later, quiet: true };
                self.verdict = Some(Failure::new(ErrorCode::Overloaded, "no pages for a promised landing"));
                self.settle(out);
            }
        }
    }

    /// The caller is gone or content: nothing more is told, pages wait in quarantine.
    fn leave(&mut self, outcome: Outcome, out: &mut Actions) {
        if !self.is_open() {
            // Whoever would have taken kept pages has gone too.
            if self.verdict.take().is_some() {
                self.quarantine();
            }
            return self.settle(out);
        }
        let id = self.wire_id();
        out.push(ReceiverAction::Send(if outcome == Outcome::Dropped {
            Message::Commit(wire::Commit { id, drop: true })
        } else {
            let (code, reason) = (ErrorCode::Cancelled.as_str().to_owned(), "cancelled".to_owned());
            Message::Abort(wire::Abort { id, code, reason })
        }));
        self.state = State::Closing { outcome, quiet: false };
        self.quarantine();
        self.settle(out);
    }

    pub(super) fn lose(&mut self, reason: &str, out: &mut Actions) {
        self.end(Outcome::Lost, Failure::new(ErrorCode::PeerLost, reason), out);
    }

    /// As [`lose`](Self::lose), for a sender that breaks the protocol: nothing of it is kept.
    pub(super) fn distrust(&mut self, reason: &str, out: &mut Actions) {
        self.frames.coverage.clear();
        self.lose(reason, out);
    }

    /// Closes an open handoff with ABORT. The caller hears of it as soon as no
    /// frame is being read.
    fn end(&mut self, outcome: Outcome, failure: Failure, out: &mut Actions) {
        if !self.is_open() {
            return;
        }
        let (code, reason) = (failure.code.as_str().to_owned(), failure.message.clone());
        out.push(ReceiverAction::Send(Message::Abort(wire::Abort { id: self.wire_id(), code, reason })));
        self.state = State::Closing { outcome, quiet: false };
        self.verdict = Some(failure);
        self.settle(out);
    }

    fn quiesced(&mut self, out: &mut Actions) {
        match &mut self.state {
            State::Closing { quiet, .. } => *quiet = true,
            _ => self.late += 1,
        }
        self.settle(out);
    }

    fn session_down(&mut self, failure: Failure, out: &mut Actions) {
        if self.is_open() {
            self.state = State::Closing { outcome: Outcome::Lost, quiet: false };
            self.verdict = Some(failure);
        }
        self.settle(out);
    }

    fn path_closed(&mut self, out: &mut Actions) {
        self.frames.reading.clear();
        self.session_down(Failure::new(ErrorCode::PeerLost, "data path closed"), out);
        if let State::Closing { quiet, .. } = &mut self.state {
            *quiet = true;
        }
        self.settle(out);
    }

    /// In closing: tells the caller once no frame is being read, and lets the
    /// pages go once the sender is silent too.
    pub(super) fn settle(&mut self, out: &mut Actions) {
        let State::Closing { outcome, quiet } = self.state else { return };
        if !self.frames.reading.is_empty() {
            return;
        }
        if let Some(reason) = self.verdict.take() {
            let complete_tokens = self.whole_tokens();
            let kept = complete_tokens > self.terms.tokens.start;
            let sink = if kept { self.sink.take() } else { None };
            self.quarantine();
            out.push(ReceiverAction::Emit(HandoffEvent::Lost { complete_tokens, sink, reason }));
        }
        if quiet {
            self.sink = None;
            self.state = State::Closed;
            out.push(ReceiverAction::Close(outcome));
        }
    }

    /// The end of the last whole page in which every layer is in.
    fn whole_tokens(&self) -> u32 {
        let complete = self.frames.coverage.complete_to();
        let border = complete - complete % self.terms.shape.page_tokens;
        if complete == self.terms.tokens.end { complete } else { border.max(self.terms.tokens.start) }
    }

    fn quarantine(&mut self) {
        self.landing = None;
        if let Some(sink) = &self.sink {
            sink.quarantine();
        }
    }

    pub(super) fn send_credit(&self, frames: u32, out: &mut Actions) {
        out.push(ReceiverAction::Send(Message::Credit(wire::Credit { id: self.wire_id(), frames })));
    }
}
