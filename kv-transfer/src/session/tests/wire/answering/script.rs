//! What bad prefill nodes do: scripts of their own.

use baton_protocol::{HandoffId, RequestId};

use super::*;

const ZEROS: HandoffId = HandoffId { request: RequestId(0), attempt: 0, leg: 0 };

/// One thing that a bad node does.
pub enum Does {
    /// Waits until a handoff is asked for.
    AwaitAsk,
    Say(Message),
    /// With its own number and session.
    Control(Control),
    AwaitCredit,
    Frame(FrameHeader),
    /// A right frame, but for what is told of it.
    Damaged(FrameHeader),
    /// A right header with other bytes: those of a layer, or, without one, numbers that are none.
    Other(FrameHeader, Option<u32>),
    /// FIN of what the headers so far have named.
    Fin,
    AwaitCommit,
    /// A place in the ring; for shared memory.
    Place(u32),
    /// Whatever a stream can carry; for transports over one.
    Bytes(Vec<u8>),
    HangUp,
    /// Keeps everything open and says nothing more.
    Silence,
    /// Answers pings, and does nothing more.
    Pongs,
    /// Answers pings, and writes such bytes now and then, one at a time; for transports over a stream.
    Drips(u8),
}

/// Its way, a name, and what is done.
pub type Case = (Way, &'static str, Vec<Does>);

pub fn id() -> Option<wire::HandoffId> {
    Some(handoff_id(0).into())
}

fn start() -> Does {
    Does::Say(Message::Start(wire::Start { id: id(), ..Default::default() }))
}

fn first() -> Does {
    Does::Say(Message::First(wire::First { id: id(), ..Default::default() }))
}

fn fin(frames: u32, digest: u64) -> Does {
    Does::Say(Message::Fin(wire::Fin { id: id(), frames, digest }))
}

/// A right frame of one layer, but for the change.
pub fn frame(seq: u32, change: impl FnOnce(&mut FrameHeader)) -> Does {
    let mut header = header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS));
    change(&mut header);
    Does::Frame(header)
}

/// Right frames of all layers.
pub fn right() -> impl Iterator<Item = Does> {
    (0..3).map(|seq| frame(seq, |_| {}))
}

fn abort(reason: &str) -> Does {
    Does::Say(Message::Abort(wire::Abort { id: id(), reason: reason.to_owned(), ..Default::default() }))
}

pub fn begun(then: impl IntoIterator<Item = Does>) -> Vec<Does> {
    [start(), Does::AwaitCredit].into_iter().chain(then).collect()
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<Case> {
    let damaged = |_| Does::Damaged(header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS)));
    let swapped =
        |seq, layer| Does::Other(header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS)), Some(layer));
    let other = |change: fn(&mut Control)| {
        let mut control = Control { session: 0, number: 2, message: Some(Message::Ping(Default::default())) };
        change(&mut control);
        vec![Does::Control(control)]
    };
    vec![
        (6, "a number left out", other(|control| control.number = 3)),
        (16, "a number again: a replay", other(|control| control.number = 1)),
        (10, "another session", other(|control| control.session = 1)),
        (6, "a kind that nobody knows", other(|control| control.message = None)),
        (6, "PREFILL from the wrong side", vec![Does::Say(Message::Prefill((&ask(0, TOKENS, 0)).into()))]),
        (6, "WELCOME again", vec![Does::Say(Message::Welcome(Welcome::default()))]),
        (7, "START without an id", vec![Does::Say(Message::Start(Default::default()))]),
        (
            7,
            "RECONCILE with an id of no bytes",
            vec![Does::Say(Message::Reconcile(wire::Reconcile {
                ids: vec![wire::HandoffId::default()],
                up_to_number: u64::MAX,
            }))],
        ),
        (
            19,
            "RECONCILE that knows nothing",
            vec![Does::Say(Message::Reconcile(wire::Reconcile { ids: Vec::new(), up_to_number: u64::MAX }))],
        ),
        (22, "ABORT", vec![Does::Say(Message::Abort(wire::Abort { id: id(), ..Default::default() }))]),
        (6, "a frame before START", vec![frame(0, |_| {})]),
        (18, "START twice and hang up", begun([start(), start(), Does::HangUp])),
        (8, "a layer beyond", begun([frame(0, |header| header.span.layers = 2..4)])),
        (9, "all layers there are numbers for", begun([frame(0, |header| header.span.layers = 0..u32::MAX)])),
        (8, "tokens beyond", begun([frame(0, |header| header.span.tokens = 0..TOKENS + 1)])),
        (
            9,
            "the last token there is a number for",
            begun([frame(0, |header| header.span.tokens = u32::MAX - 1..u32::MAX)]),
        ),
        (8, "heads beyond", begun([frame(0, |header| header.span.heads = 1..3)])),
        (9, "too few bytes", begun([frame(0, |header| header.bytes -= 1)])),
        (9, "too many bytes", begun([frame(0, |header| header.bytes += 16)])),
        (4, "no bytes", begun([frame(0, |header| header.bytes = 0)])),
        (12, "beyond the credit", begun([frame(0, |header| header.seq = 4)])),
        (9, "the largest number", begun([frame(0, |header| header.seq = u32::MAX)])),
        (8, "a box twice under two numbers", begun([frame(0, |_| {}), frame(0, |header| header.seq = 1)])),
        (
            26,
            "one frame in another's place",
            begun([first(), frame(0, |header| header.span.layers = 1..2), frame(1, |_| {})]),
        ),
        (11, "a checksum that is never right", begun((0..5).map(damaged))),
        (12, "FIN before the first token", begun(right().chain([fin(3, 0)]))),
        (11, "FIN of another digest", begun([first()].into_iter().chain(right()).chain([fin(3, 7)]))),
        (
            12,
            "FIN of fewer frames than came",
            begun([first()].into_iter().chain(right()).chain([Does::AwaitCredit, fin(1, 0)])),
        ),
        (12, "FIN of more frames than were allowed", begun([first(), fin(u32::MAX, 0)])),
        (12, "FIN of nothing", begun([first(), fin(0, 0)])),
        (12, "FIN of frames that never come", begun([first(), fin(2, 0)])),
        (6, "FIRST a thousand times and hang up", begun((0..1000).map(|_| first()).chain([Does::HangUp]))),
        (
            7,
            "frames that nobody asked for, and hang up",
            begun(
                (0..50)
                    .map(|leg| frame(0, |header| header.handoff = handoff_id(leg + 5)))
                    .chain([Does::HangUp]),
            ),
        ),
        (
            7,
            "frames of an id of zeros, and hangs up",
            begun([frame(0, |header| header.handoff = ZEROS), Does::HangUp]),
        ),
        (
            8,
            "a box that overlaps another",
            begun([
                frame(0, |_| {}),
                frame(1, |header| {
                    header.span.layers = 0..2;
                    header.bytes *= 2;
                }),
            ]),
        ),
        (
            11,
            "the bytes of two frames in each other's place",
            begun([first(), swapped(0, 1), swapped(1, 0), frame(2, |_| {}), Does::Fin]),
        ),
        (22, "ABORT behind START", begun([abort("")])),
        (22, "ABORT behind a frame", begun([frame(0, |_| {}), abort("")])),
        (22, "ABORT, and frames behind it", begun([abort("")].into_iter().chain(right()))),
        (24, "a reason of three megabytes", vec![abort(&"x".repeat(3 << 20))]),
        (23, "hangs up when asked", vec![Does::HangUp]),
        (23, "hangs up after START", begun([Does::HangUp])),
        (23, "hangs up after a frame", begun([frame(0, |_| {}), Does::HangUp])),
        (23, "silence when asked", vec![Does::Silence]),
        (23, "silence after START", begun([Does::Silence])),
    ]
}

/// What is too late to do harm, or is allowed.
pub fn harmless() -> Vec<Case> {
    let whole = || begun([first()].into_iter().chain(right()).chain([Does::Fin]));
    let then = |does: Vec<Does>| whole().into_iter().chain(does).collect();
    let not_numbers = |seq| Does::Other(header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS)), None);
    let again = || [Does::AwaitCommit, frame(0, |_| {}), Does::HangUp];
    vec![
        (6, "a frame behind FIN", then(again().into())),
        (6, "FIN twice", then(vec![Does::Fin])),
        (
            7,
            "a frame of a handoff that is over, numbered on",
            then(vec![Does::AwaitCommit, frame(0, |header| header.seq = 3), Does::HangUp]),
        ),
        (
            14,
            "numbers that are none",
            begun([first(), not_numbers(0), not_numbers(1), not_numbers(2), Does::Fin]),
        ),
        (22, "ABORT behind COMMIT", then(vec![Does::AwaitCommit, abort("")])),
        (
            26,
            "frames in another order",
            begun([first(), frame(2, |_| {}), frame(0, |_| {}), frame(1, |_| {}), Does::Fin]),
        ),
    ]
}

/// Words in a ring that make no sense.
pub fn places() -> Vec<Case> {
    let beyond = shm::map::DATA_BYTES as u32 + 1;
    let case = |name, place| (15, name, begun([Does::Place(place), Does::Silence]));
    vec![
        case("a place beyond the ring", beyond),
        case("the largest place", u32::MAX),
        case("a place half the numbers on", 1 << 31),
    ]
}

/// What else a stream can carry.
pub fn bytes() -> Vec<Case> {
    let head = header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS));
    let changed = |change: fn(&mut FrameHeader)| {
        let mut head = head.clone();
        change(&mut head);
        head.encode().to_vec()
    };
    let good = head.encode().to_vec();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        bytes
    };
    let case = |way, name, bytes| (way, name, begun([Does::Bytes(bytes), Does::Silence]));
    vec![
        case(2, "a megabyte of noise", vec![0xa5; 1 << 20]),
        case(
            2,
            "HTTP",
            b"GET / HTTP/1.1\r\nhost: x\r\nuser-agent: a peer that is no peer of this kind at all\r\n\r\n"
                .to_vec(),
        ),
        case(3, "another magic", flipped(0)),
        case(3, "a header with a flipped bit", flipped(50)),
        case(3, "a reserved byte", flipped(70)),
        case(4, "a frame of four gigabytes", changed(|header| header.bytes = u32::MAX)),
        case(
            4,
            "a frame over the limit",
            changed(|header| header.bytes = crate::transport::MAX_FRAME_BYTES + 1),
        ),
        case(
            9,
            "layers backwards",
            changed(|header| (header.span.layers.start, header.span.layers.end) = (2, 1)),
        ),
        case(9, "no heads", changed(|header| header.span.heads = 1..1)),
        case(4, "one byte of a header", good[..1].to_vec()),
        case(4, "half a header", good[..40].to_vec()),
        case(4, "a header and no payload", good.clone()),
        case(4, "a header and half a payload", [good.clone(), vec![1; 99]].concat()),
        (5, "a payload one byte at a time", begun([Does::Bytes(good.clone()), Does::Drips(1)])),
        case(4, "a payload and half a checksum", [good.clone(), vec![1; head.bytes as usize + 2]].concat()),
    ]
}
