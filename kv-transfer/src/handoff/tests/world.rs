//! The two machines of a handoff, the channels between them, and what can happen to either.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use baton_protocol::{ErrorCode, Failure, FrameHeader, KvSink, KvSource, Token, wire::control::Message};

use super::{
    super::{
        HandoffEvent,
        plan::Cut,
        receiver::{Receiver, ReceiverAction, ReceiverEvent, ReceiverTerms},
        sender::{Sender, SenderAction, SenderEvent, SenderTerms},
    },
    every_order,
};
use crate::{
    Progress, Queue,
    metrics::Outcome,
    testing::{Memory, SHAPE, Slot, handoff_id},
    transport::{Checksum, Received},
};

pub const TOKENS: u32 = 11;
pub const HAVE: u32 = 4;
/// Frames that a path reads at once.
pub const MAX_READING: usize = 3;
pub const REPAIR: Duration = Duration::from_millis(100);

pub fn sender_terms() -> SenderTerms {
    let cut = Cut { shape: SHAPE, heads: vec![0..SHAPE.kv_heads], frame_bytes: 70 };
    SenderTerms { id: handoff_id(0), cut, max_repeats: 8, tokens: HAVE..TOKENS }
}

pub fn receiver_terms() -> ReceiverTerms {
    ReceiverTerms {
        id: handoff_id(0),
        shape: SHAPE,
        heads: 0..SHAPE.kv_heads,
        tokens: HAVE..TOKENS,
        wants_first: true,
        window_frames: 2,
        repair_timeout: REPAIR,
        max_nacks: 3,
    }
}

pub fn first_token() -> Token {
    Token { choice: 0, position: 0, id: 5, logprob: None, top: Vec::new() }
}

/// What the engine reports: a cached part, two chunks in two layer groups each, a token.
pub fn script(source: Arc<Memory>) -> VecDeque<Progress> {
    let computed = |layers, tokens| Progress::Computed { layers, tokens };
    VecDeque::from([
        Progress::Started { cached_tokens: 5, queue: Duration::ZERO, source },
        computed(0..3, 0..5),
        computed(0..2, 5..9),
        computed(2..3, 5..9),
        computed(0..2, 9..TOKENS),
        computed(2..3, 9..TOKENS),
        Progress::Sampled { tokens: vec![first_token()], prefill: Duration::ZERO },
        Progress::Done,
    ])
}

/// What an engine reports of tokens of a prompt.
pub type Script = fn(Range<u32>, Arc<Memory>) -> VecDeque<Progress>;

/// A frame on its way into pages or the bit bucket, and whether it is intact.
pub type Reading = (FrameHeader, bool, Option<Arc<dyn KvSink>>);

pub struct World {
    /// To be sent.
    pub tokens: Range<u32>,
    /// What each machine was told, in order: the sender, the receiver.
    pub told: [Vec<u8>; 2],
    pub now: Instant,
    pub sender: Sender,
    pub receiver: Receiver,
    pub source: Arc<Memory>,
    pub sink: Arc<Memory>,
    pub engine: VecDeque<Progress>,
    pub up: VecDeque<Message>,
    pub down: VecDeque<Message>,
    pub line: VecDeque<(FrameHeader, Arc<dyn KvSource>)>,
    pub hand: Option<(FrameHeader, Arc<dyn KvSource>)>,
    pub wire: VecDeque<(FrameHeader, bool)>,
    pub reading: VecDeque<Reading>,
    pub moved: Instant,
    pub sender_closed: Option<Outcome>,
    pub receiver_closed: Option<Outcome>,
    pub ready: bool,
    pub lost: Option<u32>,
    /// Why it was lost.
    pub reason: String,
    pub left: bool,
    pub crashed: bool,
    pub path_closed: bool,
    pub faults: u32,
}

impl World {
    pub fn new(landing: bool) -> Self {
        Self::of(HAVE..TOKENS, landing, |_, source| script(source))
    }

    /// A handoff of these tokens, of which the engine reports this.
    pub fn of(tokens: Range<u32>, landing: bool, script: Script) -> Self {
        let now = Instant::now();
        let (source, sink) = (Memory::computed(&SHAPE, 0..tokens.end), Memory::empty(&SHAPE, tokens.clone()));
        let slot = Slot(landing.then(|| sink.clone()));
        let sending = SenderTerms { tokens: tokens.clone(), ..sender_terms() };
        let receiving = ReceiverTerms { tokens: tokens.clone(), ..receiver_terms() };
        let mut world = Self {
            told: Default::default(),
            now,
            sender: Sender::new(sending),
            receiver: Receiver::new(receiving, Box::new(slot)),
            engine: script(tokens.clone(), source.clone()),
            tokens,
            source,
            sink,
            up: VecDeque::new(),
            down: VecDeque::new(),
            line: VecDeque::new(),
            hand: None,
            wire: VecDeque::new(),
            reading: VecDeque::new(),
            moved: now,
            sender_closed: None,
            receiver_closed: None,
            ready: false,
            lost: None,
            reason: String::new(),
            left: false,
            crashed: false,
            path_closed: false,
            faults: 0,
        };
        world.tell_sender(SenderEvent::Accepted(Queue::default()));
        world
    }

    pub fn tell_sender(&mut self, event: SenderEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            note(&mut self.told[0], &every_order::word_to_sender(&event));
            if self.sender_closed.is_some() {
                // A session answers for machines that are gone.
                if matches!(event, SenderEvent::Abort | SenderEvent::Commit { drop: true }) && !self.crashed {
                    self.up.push_back(Message::Quiesced(Default::default()));
                }
                continue;
            }
            for action in self.sender.on(event) {
                match action {
                    SenderAction::Send(message) => {
                        if matches!(message, Message::Quiesced(_)) {
                            assert!(
                                self.line.is_empty() && self.hand.is_none(),
                                "QUIESCED with frames under way"
                            );
                        }
                        if !self.crashed {
                            self.up.push_back(message);
                        }
                    }
                    SenderAction::Frame(header, source) => self.line.push_back((header, source)),
                    SenderAction::Unqueue => events.extend(self.line.drain(..).map(|_| SenderEvent::Skipped)),
                    SenderAction::Cancel => self.engine.clear(),
                    SenderAction::Close(outcome) => {
                        assert!(self.sender_closed.replace(outcome).is_none(), "closed twice");
                    }
                }
            }
        }
    }

    pub fn tell_receiver(&mut self, event: ReceiverEvent<'_>) -> Option<Arc<dyn KvSink>> {
        let mut place = None;
        note(&mut self.told[1], &every_order::word_to_receiver(&event));
        if self.receiver_closed.is_some() {
            return None;
        }
        for action in self.receiver.on(event, self.now) {
            match action {
                ReceiverAction::Send(message) => {
                    if !self.crashed {
                        self.down.push_back(message);
                    }
                }
                ReceiverAction::Emit(HandoffEvent::Ready { sink, stats }) => {
                    assert!(!self.left && self.lost.is_none() && !self.ready);
                    assert!(self.sink.holds(self.tokens.clone()), "ready without the right bytes");
                    assert_eq!(stats.bytes, self.tokens.len() as u64 * SHAPE.token_bytes() as u64);
                    assert_eq!(sink.tokens(), self.tokens);
                    self.sink.sealed.store(true, Ordering::SeqCst);
                    self.ready = true;
                }
                ReceiverAction::Emit(HandoffEvent::Lost { complete_tokens, sink, reason }) => {
                    assert!(!self.left && self.lost.is_none() && !self.ready);
                    assert!(self.sink.holds(self.tokens.start..complete_tokens), "kept what is not whole");
                    assert_eq!(sink.is_some(), complete_tokens > self.tokens.start);
                    assert!(
                        complete_tokens.is_multiple_of(SHAPE.page_tokens)
                            || [self.tokens.start, self.tokens.end].contains(&complete_tokens)
                    );
                    if sink.is_some() {
                        self.sink.sealed.store(true, Ordering::SeqCst);
                    }
                    (self.lost, self.reason) = (Some(complete_tokens), reason.message);
                }
                ReceiverAction::Emit(_) => assert!(!self.left && self.lost.is_none()),
                ReceiverAction::Land(sink) => place = Some(sink),
                ReceiverAction::Close(outcome) => {
                    assert!(self.receiver_closed.replace(outcome).is_none(), "closed twice");
                }
            }
        }
        place
    }

    /// Does one of the things that can happen now; false if it cannot.
    pub fn step(&mut self, what: u8) -> bool {
        match what {
            0 => self.engine.pop_front().map(|news| self.tell_sender(SenderEvent::Progress(news))).is_some(),
            1 => self.down.pop_front().map(|message| self.tell_sender(as_event(&message))).is_some(),
            2 => match self.up.pop_front() {
                Some(message) => {
                    self.tell_receiver(ReceiverEvent::Control(message));
                    true
                }
                None => false,
            },
            3 => self.frame_taken(),
            4 => self.frame_leaves(),
            5 => self.frame_begins(),
            6 => self.frame_ends(),
            _ => {
                self.now += REPAIR;
                if !self.reading.is_empty() {
                    self.moved = self.now;
                }
                let moved = self.moved;
                self.tell_receiver(ReceiverEvent::Tick { moved });
                true
            }
        }
    }

    fn frame_taken(&mut self) -> bool {
        if self.hand.is_some() || self.path_closed {
            return false;
        }
        self.hand = self.line.pop_front();
        self.hand.is_some()
    }

    fn frame_leaves(&mut self) -> bool {
        let Some((header, source)) = self.hand.take() else { return false };
        let crc = Checksum::Crc32c.of(&*source, &header.span).unwrap();
        drop(source);
        let seq = header.seq;
        if !self.path_closed {
            self.wire.push_back((header, true));
        }
        self.tell_sender(SenderEvent::Sent { seq, crc });
        true
    }

    fn frame_begins(&mut self) -> bool {
        if self.reading.len() == MAX_READING || self.path_closed {
            return false;
        }
        let Some((header, intact)) = self.wire.pop_front() else { return false };
        self.moved = self.now;
        let place = self.tell_receiver(ReceiverEvent::Arriving(&header));
        self.reading.push_back((header, intact, place));
        true
    }

    fn frame_ends(&mut self) -> bool {
        let Some((header, intact, place)) = self.reading.pop_front() else { return false };
        self.moved = self.now;
        let crc = self.write(&header, intact, place);
        let received = Received { header, crc, intact, duration: Duration::ZERO };
        self.tell_receiver(ReceiverEvent::Arrived(&received));
        true
    }

    /// Writes a frame to its place, if it has one; its checksum.
    fn write(&self, header: &FrameHeader, intact: bool, place: Option<Arc<dyn KvSink>>) -> u32 {
        let mut crc = Checksum::Crc32c.begin();
        if let Some(sink) = place {
            let source = &self.source;
            sink.write(&header.span, &mut |to| {
                source.read(&header.span, &mut |from| crc.copy(from, to))?;
                to[0][0] ^= u8::from(!intact);
                Ok(())
            })
            .unwrap();
        }
        crc.value()
    }

    /// Something bad; at most so much that tests also see repairs succeed.
    pub fn misfortune(&mut self, what: u8) {
        match what {
            0 | 1 if self.faults < 3 && !self.wire.is_empty() => {
                self.faults += 1;
                if what == 0 {
                    self.wire.pop_front();
                } else if let Some((_, intact)) = self.wire.back_mut() {
                    *intact = false;
                }
            }
            2 if self.wire.len() > 1 => self.wire.swap(0, 1),
            3 if !self.wire.is_empty() => {
                let repeat = self.wire[0].clone();
                self.wire.push_back(repeat);
            }
            4 | 5 if !self.left => {
                self.left = true;
                let event = if what == 4 { ReceiverEvent::Cancel } else { ReceiverEvent::Decline };
                // Nothing is told after this; events already told stand.
                let told = self.ready || self.lost.is_some();
                self.tell_receiver(event);
                self.left = !told;
            }
            6 if !self.crashed => {
                let (crash, failure) = (&mut self.crashed, Failure::new(ErrorCode::PeerLost, "crash"));
                *crash = true;
                self.up.clear();
                self.down.clear();
                self.tell_sender(SenderEvent::SessionDown);
                self.line.clear();
                self.tell_receiver(ReceiverEvent::SessionDown(failure));
            }
            7 => {
                let failure = Failure::new(ErrorCode::Internal, "engine fault");
                if !self.engine.is_empty() {
                    self.engine = VecDeque::from([Progress::Failed(failure)]);
                }
            }
            _ => {}
        }
    }

    /// After a crash nothing more can land some time; what is being read then is cut off.
    pub fn close_path(&mut self) -> bool {
        if !self.crashed || self.path_closed {
            return false;
        }
        self.path_closed = true;
        self.wire.clear();
        while let Some((header, _, place)) = self.reading.pop_front() {
            self.write(&header, false, place);
        }
        self.tell_receiver(ReceiverEvent::PathClosed);
        true
    }

    /// Lets everything that is under way come to its end, without new misfortune.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "no end: {:?} {:?}", self.sender_closed, self.receiver_closed);
            if (0..7).any(|what| self.step(what)) {
                continue;
            }
            if self.close_path() {
                continue;
            }
            if self.sender_closed.is_some() && self.receiver_closed.is_some() {
                return;
            }
            self.step(7);
        }
    }

    pub fn check(mut self) -> (bool, Option<u32>) {
        self.settle();
        assert!(self.left || self.ready != self.lost.is_some(), "exactly one end is told");
        assert_eq!(self.sink.violations.load(Ordering::SeqCst), 0, "written after it was handed over");
        assert!(!self.sender.is_open() && !self.receiver.is_open());
        let end = (self.ready, self.lost);
        let Self { sender, receiver, source, sink, .. } = self;
        drop((sender, receiver));
        assert_eq!((Arc::strong_count(&source), Arc::strong_count(&sink)), (1, 1), "a guard was kept");
        end
    }
}

fn note(told: &mut Vec<u8>, word: &str) {
    told.extend(word.bytes().chain([0]));
}

pub fn as_event(message: &Message) -> SenderEvent {
    match message {
        Message::Credit(credit) => SenderEvent::Credit(credit.frames),
        Message::Later(_) => SenderEvent::Later,
        Message::Commit(commit) => SenderEvent::Commit { drop: commit.drop },
        Message::Nack(nack) => SenderEvent::Nack(nack.seq),
        Message::Abort(_) => SenderEvent::Abort,
        other => panic!("the receiver sent {other:?}"),
    }
}
