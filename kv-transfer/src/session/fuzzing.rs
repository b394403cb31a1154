//! What a fuzzer feeds: each function takes any bytes, must neither panic nor
//! keep pages, and checks what must hold of whatever it makes of them. Built
//! for tests and for cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use arbitrary::{Result, Unstructured};
use baton_protocol::{
    ErrorCode, Failure, FrameHeader, HandoffId, HeadShare, Incarnation, KvSpan, NodeId, Role, SessionId,
    Token,
    frame::HEADER_BYTES,
    wire::{self, Control, control::Message},
};
use prost::Message as _;

use super::{
    client::KvPeer,
    control::Inbox,
    hello::{check_hello, check_welcome, runs_to},
    paths::PathReport,
    receiving::Receiving,
    running::SessionState,
    sending::{Receiver as Decode, Sending},
};
use crate::{
    BusyReason, LocalNode, Progress, Queue, SessionError, TransferConfig, TransferMetrics, Wanted,
    handoff::{
        plan::Cut,
        sender::{Sender, SenderAction, SenderEvent, SenderTerms},
    },
    metrics::Side,
    testing::{Memory, SHAPE, Slot, ask, handoff_id, path},
    transport::{
        Checksum, Placement, Received,
        offer::{Terms, Transports},
        tcp,
    },
};

const TOKENS: u32 = 11;
const SESSION: SessionId = SessionId(40);

/// What a node has by default, as the receiving side, which does not listen.
static TRANSPORTS: LazyLock<Transports> = LazyLock::new(|| {
    let made = Transports::new(&TransferConfig::default(), &baton_trust::Trust::none(), Side::Receiving);
    made.expect("the default config names no transport")
});

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 4] =
    [("frame_header", frame_header), ("handshake", handshake), ("sender", sender), ("session", session)];

/// A header that is taken is written back the same.
pub fn frame_header(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>()
        && let Ok(header) = FrameHeader::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
        assert!(!header.span.layers.is_empty() && !header.span.tokens.is_empty());
    }
}

/// First bytes of a data socket, HELLO, WELCOME and CHOSEN.
pub fn handshake(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<{ tcp::HELLO_BYTES }>()
        && let Some(hello) = tcp::SocketHello::decode(bytes)
    {
        assert_eq!(&hello.encode(), bytes);
        assert!(hello.index < hello.sockets);
    }
    let (local, config) = (node("p"), TransferConfig::default());
    match Control::decode(bytes).ok().and_then(|control| control.message) {
        Some(Message::Hello(hello)) => {
            let agreed = check_hello(&local, &config, &TRANSPORTS, &hello);
            let runs = runs_to(&local, &hello);
            if let Ok(runs) = &runs {
                assert!(runs.iter().all(|run| !run.is_empty() && run.end <= SHAPE.kv_heads));
            }
            if let Ok(agreed) = agreed {
                assert!(!agreed.transports.is_empty() && Ok(agreed.heads) == runs);
            }
        }
        Some(Message::Welcome(welcome)) => {
            let peer = KvPeer {
                node: NodeId::from("p"),
                control_addr: String::new(),
                incarnation: Incarnation(1),
                role: Role::Prefill,
            };
            if check_welcome(&local, &config, &peer, &welcome).is_ok() {
                assert_eq!((welcome.node.as_str(), welcome.incarnation), ("p", 1));
            }
        }
        Some(Message::Chosen(chosen)) => {
            if let Ok(report) = PathReport::of(&chosen, [Wanted::Auto; 2]) {
                assert_eq!(PathReport::of(&report.chosen(), [Wanted::Auto; 2]), Ok(report));
            }
        }
        _ => {}
    }
}

/// A sending machine under any order of events: it closes once, and lets go.
pub fn sender(bytes: &[u8]) {
    let source = Memory::computed(&SHAPE, 0..TOKENS);
    let cut = Cut { shape: SHAPE, heads: vec![0..1, 1..2], frame_bytes: 70 };
    let mut machine = Sender::new(SenderTerms { id: handoff_id(0), cut, max_repeats: 3, tokens: 4..TOKENS });
    let (mut input, mut in_line, mut closed) = (Unstructured::new(bytes), 0, 0);
    let mut tell = |event| {
        for action in machine.on(event) {
            match action {
                SenderAction::Frame(..) => in_line += 1,
                SenderAction::Close(_) => closed += 1,
                _ => {}
            }
        }
        (in_line, closed)
    };
    let mut answered = 0;
    while let Some(kind) = next_kind(&mut input, 15) {
        let Ok(event) = sender_event(kind, &mut input, &source) else { break };
        let answers =
            matches!(event, SenderEvent::Sent { .. } | SenderEvent::Skipped | SenderEvent::Unreadable);
        // Each frame in line is answered once and no more.
        let (in_line, closed) = tell(SenderEvent::Credit(0));
        if closed > 0 || (answers && answered == in_line) {
            continue;
        }
        answered += usize::from(answers);
        tell(event);
    }
    tell(SenderEvent::SessionDown);
    let (_, closed) = tell(SenderEvent::Abort);
    assert_eq!(closed, 1, "closes once");
    drop(machine);
    assert_eq!(Arc::strong_count(&source), 1, "a guard was kept");
}

/// What comes next, from 0 to `last`; none when the input has run out, of which numbers take no notice.
fn next_kind(input: &mut Unstructured<'_>, last: u8) -> Option<u8> {
    if input.is_empty() { None } else { input.int_in_range(0..=last).ok() }
}

fn sender_event(kind: u8, input: &mut Unstructured<'_>, source: &Arc<Memory>) -> Result<SenderEvent> {
    Ok(match kind {
        0 => SenderEvent::Accepted(Queue::default()),
        1 => SenderEvent::Refused(BusyReason { eta: Duration::ZERO, reason: String::new() }),
        2 => SenderEvent::Progress(Progress::Started {
            cached_tokens: input.arbitrary()?,
            queue: Duration::ZERO,
            source: source.clone(),
        }),
        3..=5 => {
            let KvSpan { layers, tokens, .. } = span(input)?;
            SenderEvent::Progress(Progress::Computed { layers, tokens })
        }
        6 => {
            let token =
                Token { choice: input.arbitrary()?, position: 0, id: 5, logprob: None, top: Vec::new() };
            SenderEvent::Progress(Progress::Sampled { tokens: vec![token], prefill: Duration::ZERO })
        }
        7 => SenderEvent::Progress(Progress::Done),
        8 => SenderEvent::Progress(Progress::Failed(Failure::new(ErrorCode::Internal, "x"))),
        9 => SenderEvent::ProgressEnded,
        10 => SenderEvent::Credit(small(input)?),
        11 => SenderEvent::Nack(small(input)?),
        12 => SenderEvent::Sent { seq: small(input)?, crc: input.arbitrary()? },
        13 => SenderEvent::Skipped,
        14 => SenderEvent::Commit { drop: input.arbitrary()? },
        _ => input.choose(&[0, 1, 2]).map(|which| match which {
            0 => SenderEvent::Later,
            1 => SenderEvent::Abort,
            _ => SenderEvent::Unreadable,
        })?,
    })
}

/// Both ends of a session under any messages, frames and pauses: when it has
/// ended, no page is kept.
pub fn session(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let metrics = TransferMetrics::new(Side::Receiving);
    let receiving = Receiving::new(SESSION, ("p".into(), node("d")), quiet(), path(), metrics);
    let decode = Decode { node: "d".into(), incarnation: Incarnation(1), heads: vec![0..2] };
    let terms = Terms { session: SESSION, secret: [0; 32], checksum: Checksum::Crc32c, config: quiet() };
    let (parties, metrics) = ((decode, node("p")), TransferMetrics::new(Side::Sending));
    let sending = Sending::new(&terms, parties, path(), Inbox::new(SESSION), metrics);
    let sinks: Vec<_> = (0..2).map(|_| Memory::empty(&SHAPE, 4..TOKENS)).collect();
    let open = |(leg, sink): (u32, &Arc<Memory>)| {
        receiving.open(&ask(leg, TOKENS, 4), Box::new(Slot(Some(sink.clone())))).ok()
    };
    let mut handoffs: Vec<_> = (0..).zip(&sinks).map(open).collect();
    let mut now = Instant::now();
    let (mut number, mut other_number) = (1, 1);
    let ended = loop {
        let Some(what) = next_kind(&mut input, 9) else { break SessionError::down("no more input") };
        let done = match what {
            0..=3 => message(&mut input).map(|message| {
                number += 1;
                receiving.control(Control { session: SESSION.0, number, message }, now)
            }),
            4..=5 => frame(&mut input).map(|received| {
                receiving.frame(&received, &mut |placement| {
                    assert!(matches!(placement, Placement::Land(_) | Placement::Discard));
                });
                Ok(())
            }),
            6 => input.int_in_range(0..=4_000).map(|ms| {
                now += Duration::from_millis(ms);
                receiving.tick(now).and_then(|()| sending.tick(now))
            }),
            7 => input.int_in_range(0..=1).map(|leg: usize| {
                handoffs[leg].take();
                Ok(())
            }),
            _ => message(&mut input).map(|message| {
                other_number += 1;
                let control = Control { session: SESSION.0, number: other_number, message };
                sending.control(control, now).map(drop)
            }),
        };
        while receiving.pop().is_some() || sending.pop().is_some() {}
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => break error,
            Err(_) => break SessionError::down("no more input"),
        }
    };
    receiving.end(ended.clone());
    receiving.path_closed();
    sending.end(ended);
    drop(handoffs);
    for sink in sinks {
        assert_eq!(Arc::strong_count(&sink), 1, "a guard was kept");
    }
}

fn node(name: &str) -> LocalNode {
    LocalNode {
        cluster: "test".to_owned(),
        node: name.into(),
        incarnation: Incarnation(1),
        control_addr: "127.0.0.1:1".to_owned(),
        model_fingerprint: "f".to_owned(),
        kv: SHAPE,
        trust: baton_trust::Trust::none(),
        heads: HeadShare::whole(SHAPE.kv_heads),
    }
}

fn quiet() -> TransferConfig {
    TransferConfig { probe_bytes: 0, ..TransferConfig::default() }
}

/// Mostly a number that means something.
fn small(input: &mut Unstructured<'_>) -> Result<u32> {
    if input.ratio(1, 16)? { input.arbitrary() } else { input.int_in_range(0..=12) }
}

fn span(input: &mut Unstructured<'_>) -> Result<KvSpan> {
    let mut range = || Ok::<_, arbitrary::Error>(small(input)?..small(input)?);
    Ok(KvSpan { layers: range()?, tokens: range()?, heads: range()? })
}

fn frame(input: &mut Unstructured<'_>) -> Result<Received> {
    let span = if input.ratio(1, 4)? { span(input)? } else { SHAPE.span(0..3, 4..TOKENS) };
    let right = input.ratio(3, 4)?;
    let fits = span.layers.end <= 3 && span.tokens.end <= TOKENS && span.heads.end <= 2;
    let bytes = if right && fits { SHAPE.span_bytes(&span) as u32 } else { small(input)? };
    let (handoff, seq) = (handoff_id(small(input)?), small(input)?);
    let header = FrameHeader { handoff, seq, span, bytes };
    Ok(Received { header, crc: input.arbitrary()?, intact: input.ratio(3, 4)?, duration: Duration::ZERO })
}

fn id(input: &mut Unstructured<'_>) -> Result<Option<wire::HandoffId>> {
    let known: HandoffId = handoff_id(input.int_in_range(0..=2)?);
    Ok(match input.int_in_range(0..=31)? {
        0 => None,
        1 => Some(wire::HandoffId { request: input.bytes(3)?.to_vec().into(), attempt: 0, leg: 0 }),
        _ => Some(known.into()),
    })
}

/// Any message, as often as not one that makes sense.
fn message(input: &mut Unstructured<'_>) -> Result<Option<Message>> {
    let kind = input.int_in_range(0..=18)?;
    let id = id(input)?;
    Ok(Some(match kind {
        0 => Message::Ping(wire::SessionPing { open: small(input)?, xor: input.arbitrary()?, reply: true }),
        1 => Message::Reconcile(wire::Reconcile {
            ids: id.into_iter().collect(),
            up_to_number: small(input)?.into(),
        }),
        2 => {
            let mut prefill = wire::PrefillAsk::from(&ask(small(input)?, TOKENS, small(input)?));
            prefill.id = id;
            Message::Prefill(prefill)
        }
        3 => Message::Queued(wire::Queued { id, position: small(input)?, eta_ms: input.arbitrary()? }),
        4 => Message::Busy(wire::Busy { id, eta_ms: input.arbitrary()?, reason: String::new() }),
        5 | 6 => Message::Start(wire::Start { id, cached_tokens: small(input)?, queue_us: 0 }),
        7 => Message::Credit(wire::Credit { id, frames: small(input)? }),
        8 => Message::Later(wire::Later { id }),
        9 | 10 => Message::First(wire::First { id, tokens: Vec::new(), prefill_us: input.arbitrary()? }),
        11 | 12 => Message::Fin(wire::Fin { id, frames: small(input)?, digest: input.arbitrary()? }),
        13 => Message::Commit(wire::Commit { id, drop: input.arbitrary()? }),
        14 => Message::Nack(wire::Nack { id, seq: small(input)? }),
        15 => Message::Abort(wire::Abort { id, code: String::new(), reason: String::new() }),
        16 => Message::Quiesced(wire::Quiesced { id, frames: small(input)? }),
        17 => Message::Chosen(path().chosen()),
        _ => return Ok(None),
    }))
}
