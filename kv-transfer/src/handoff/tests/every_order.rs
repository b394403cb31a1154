//! Every order in which a small handoff can go: one or two frames of a prompt and its first token, with a
//! crash and an end by the caller or the engine, or a fault of a frame and a silence, each at any moment.
//!
//! A state is known by what each machine was told, in order, and by what is between them, since machines
//! are functions of what they are told. Orders that differ only in which of the two was told first are one
//! state. From each state it is checked that, without further misfortune, all ends well.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::*;

/// What one of the channels or the engine does, or what befalls them.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// As in [`World::step`].
    Step(u8),
    /// As in [`World::misfortune`].
    Misfortune(u8),
    /// The last frames of a crashed session are gone.
    PathClosed,
}

/// How often each kind of misfortune may come in one order.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    crashes: usize,
    ends: usize,
    faults: usize,
    silences: usize,
}

/// The last token of a page, so that what the first frame brings may be kept without the second.
const FIRST: u32 = 2 * SHAPE.page_tokens - 1;

const SILENCE: u8 = 7;
const FAULTS: [u8; 2] = [0, 1];
const ENDS: [u8; 3] = [4, 5, 7];
const CRASH: u8 = 6;

/// A word for it, for comparing orders.
pub(super) fn word_to_sender(event: &SenderEvent) -> String {
    match event {
        SenderEvent::Accepted(_) => "accepted".to_owned(),
        SenderEvent::Refused(_) => "refused".to_owned(),
        SenderEvent::Progress(progress) => match progress {
            Progress::Started { .. } => "started".to_owned(),
            Progress::Computed { layers, tokens } => format!("computed {layers:?} {tokens:?}"),
            Progress::Sampled { .. } => "sampled".to_owned(),
            Progress::Done => "done".to_owned(),
            Progress::Failed(_) => "failed".to_owned(),
        },
        SenderEvent::ProgressEnded => "progress ended".to_owned(),
        SenderEvent::Credit(frames) => format!("credit {frames}"),
        SenderEvent::Later => "later".to_owned(),
        SenderEvent::Commit { drop } => format!("commit {drop}"),
        SenderEvent::Nack(seq) => format!("nack {seq}"),
        SenderEvent::Abort => "abort".to_owned(),
        SenderEvent::Sent { seq, crc } => format!("sent {seq} {crc}"),
        SenderEvent::Skipped => "skipped".to_owned(),
        SenderEvent::Unreadable => "unreadable".to_owned(),
        SenderEvent::SessionDown => "session down".to_owned(),
    }
}

/// The same of a receiver.
pub(super) fn word_to_receiver(event: &ReceiverEvent<'_>) -> String {
    match event {
        ReceiverEvent::Control(message) => format!("{message:?}"),
        ReceiverEvent::Arriving(header) => format!("arriving {}", header.seq),
        ReceiverEvent::Arrived(received) => format!("arrived {} {}", received.header.seq, received.intact),
        ReceiverEvent::Tick { .. } => "tick".to_owned(),
        ReceiverEvent::Cancel => "cancel".to_owned(),
        ReceiverEvent::Decline => "decline".to_owned(),
        ReceiverEvent::Orphaned => "orphaned".to_owned(),
        ReceiverEvent::SessionDown(_) => "session down".to_owned(),
        ReceiverEvent::PathClosed => "path closed".to_owned(),
    }
}

/// A frame for each token, and the first token of the answer.
fn script_of(tokens: Range<u32>, source: Arc<Memory>) -> VecDeque<Progress> {
    let computed = |token| Progress::Computed { layers: 0..3, tokens: token..token + 1 };
    let cached = Progress::Computed { layers: 0..3, tokens: 0..tokens.start };
    let begins = [Progress::Started { cached_tokens: tokens.start, queue: Duration::ZERO, source }, cached];
    let ends = [Progress::Sampled { tokens: vec![first_token()], prefill: Duration::ZERO }, Progress::Done];
    begins.into_iter().chain(tokens.map(computed)).chain(ends).collect()
}

fn moves() -> impl Iterator<Item = Move> {
    let steps = (0..=SILENCE).map(Move::Step);
    let misfortunes = FAULTS.into_iter().chain(ENDS).chain([CRASH]).map(Move::Misfortune);
    steps.chain(misfortunes).chain([Move::PathClosed])
}

// === impl Bounds ===

impl Bounds {
    fn allow(&self, path: &[Move]) -> bool {
        let count = |is_one: &dyn Fn(u8) -> bool| {
            path.iter().filter(|made| matches!(made, Move::Misfortune(what) if is_one(*what))).count()
        };
        let silences = path.iter().filter(|made| matches!(made, Move::Step(SILENCE))).count();
        count(&|what| what == CRASH) <= self.crashes
            && count(&|what| ENDS.contains(&what)) <= self.ends
            && count(&|what| FAULTS.contains(&what)) <= self.faults
            && silences <= self.silences
    }
}

impl World {
    fn can(&self, made: Move) -> bool {
        match made {
            Move::Step(0) => !self.engine.is_empty(),
            Move::Step(1) => !self.down.is_empty(),
            Move::Step(2) => !self.up.is_empty(),
            Move::Step(3) => self.hand.is_none() && !self.path_closed && !self.line.is_empty(),
            Move::Step(4) => self.hand.is_some(),
            Move::Step(5) => self.reading.len() < MAX_READING && !self.path_closed && !self.wire.is_empty(),
            Move::Step(6) => !self.reading.is_empty(),
            Move::Step(_) => self.receiver_closed.is_none(),
            Move::Misfortune(0 | 1) => !self.wire.is_empty(),
            Move::Misfortune(4 | 5) => !self.left && self.receiver_closed.is_none(),
            Move::Misfortune(CRASH) => !self.crashed,
            Move::Misfortune(_) => !self.engine.is_empty(),
            Move::PathClosed => self.crashed && !self.path_closed,
        }
    }

    fn make(&mut self, made: Move) {
        match made {
            Move::Step(what) => {
                self.step(what);
            }
            Move::Misfortune(what) => self.misfortune(what),
            Move::PathClosed => {
                self.close_path();
            }
        }
    }

    fn known_by(&self) -> String {
        let numbers = |frame: &(FrameHeader, bool)| (frame.0.seq, frame.1);
        let wire: Vec<_> = self.wire.iter().map(numbers).collect();
        let reading: Vec<_> = self
            .reading
            .iter()
            .map(|(header, intact, place)| (header.seq, intact, place.is_some()))
            .collect();
        let has_failed = matches!(self.engine.front(), Some(Progress::Failed(_)));
        let engine = (self.engine.len(), has_failed);
        let ends = (engine, self.left, self.crashed, self.path_closed);
        let lines = (self.line.len(), self.hand.is_some(), self.up.len(), self.down.len());
        format!("{:?} {wire:?} {reading:?} {ends:?} {lines:?}", self.told)
    }
}

/// 128 bits of it: enough that no two of a million states are taken for one.
fn digest(known: &str) -> [u64; 2] {
    [0u8, 1].map(|salt| {
        let mut hasher = DefaultHasher::new();
        (salt, known).hash(&mut hasher);
        hasher.finish()
    })
}

/// Goes through all orders; how many states there are.
fn explore(frames: u32, landing: bool, bounds: Bounds) -> usize {
    let (mut seen, mut paths) = (HashSet::new(), vec![Vec::new()]);
    while let Some(path) = paths.pop() {
        let mut world = World::of(FIRST..FIRST + frames, landing, script_of);
        path.iter().for_each(|made| world.make(*made));
        if !seen.insert(digest(&world.known_by())) {
            continue;
        }
        for made in moves().filter(|made| world.can(*made)) {
            let longer: Vec<_> = path.iter().copied().chain([made]).collect();
            if bounds.allow(&longer) {
                paths.push(longer);
            }
        }
        let (ready, lost) = world.check();
        let spoiled = path.iter().any(|made| matches!(made, Move::Misfortune(_))) || !landing;
        assert!(ready || spoiled, "lost without a reason at {lost:?}: {path:?}");
    }
    seen.len()
}

/// Of each number of frames, as far as the bounds go; the states are printed.
fn explore_all(cases: &[(u32, bool, Bounds)]) {
    for &(frames, landing, bounds) in cases {
        println!("{frames} frames, {bounds:?}: {} states", explore(frames, landing, bounds));
    }
}

const QUIET: Bounds = Bounds { crashes: 0, ends: 0, faults: 0, silences: 0 };

#[test]
fn all_orders_with_a_crash_or_an_end_or_both_end_well() {
    let (crash, end) = (Bounds { crashes: 1, ..QUIET }, Bounds { ends: 1, ..QUIET });
    let both = Bounds { crashes: 1, ends: 1, ..QUIET };
    explore_all(&[(1, true, both), (1, false, both), (2, true, crash), (2, true, end)]);
    if std::env::var("BATON_COUNTS").is_ok_and(|counts| counts == "full") {
        explore_all(&[(2, true, both)]);
    }
}

#[test]
fn all_orders_with_a_faulty_frame_and_a_silence_end_well() {
    let fault = Bounds { faults: 1, ..QUIET };
    explore_all(&[(1, true, Bounds { silences: 1, ..fault }), (2, true, fault)]);
}
