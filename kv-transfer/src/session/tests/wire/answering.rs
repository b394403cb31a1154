//! Bad prefill nodes, against a decode node's sessions.
//!
//! - [`script`]: what they do
//! - [`answerer`]: who does it

mod answerer;
mod script;

use baton_protocol::KvSpan;

use super::*;
use crate::{
    testing::{handoff_id, header},
    transport::probe::PROBE,
};
use answerer::answerer;
use script::{Case, Does, begun, id, right};
pub use script::{bytes, cases, harmless, places};

/// Size of the frames that measure a path, where one is measured.
const PROBE_BYTES: u32 = 100;

/// The node is as good as new: a handoff with an honest peer works.
async fn is_well(sessions: &Sessions, honest: &Served, leg: u32) {
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&honest.peer, ask(leg, TOKENS, 0), landing(&sink)).await.unwrap();
    assert_eq!(finish(&mut handoff).await.0.last(), Some(&"ready"));
    assert!(sink.holds(0..TOKENS));
}

#[tokio::test]
pub async fn bad_answers_are_lost_and_nothing_is_kept() {
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, (way, name, script)) in (0..).zip(road.bad_answers()) {
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, mut server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            let (names, end) = finish(&mut handoff).await;
            assert_eq!(names.last(), Some(&"lost"), "{way}: {name} over {}", road.name());
            // Found out by what it did; only who does nothing is lost for want of pings.
            let HandoffEvent::Lost { reason, .. } = &end else { unreachable!() };
            assert_eq!(reason.message.contains("pings"), name.starts_with("silence"), "{name}: {reason}");
            assert_eq!(reason.message.contains("slowly"), name.ends_with("at a time"), "{name}: {reason}");
            drop((end, handoff));
            server.shutdown().await;
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

impl Road {
    /// What a bad prefill node can do over this transport.
    pub fn bad_answers(self) -> Vec<Case> {
        let streams = if self.is_stream { bytes() } else { Vec::new() };
        let ring = if self.kind == TransportKind::Shm { places() } else { Vec::new() };
        cases().into_iter().chain(streams).chain(ring).collect()
    }
}

#[tokio::test]
pub async fn what_is_late_or_allowed_does_no_harm() {
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, (way, name, script)) in (0..).zip(harmless()) {
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, mut server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            let (names, _) = finish(&mut handoff).await;
            sink.sealed.store(true, Ordering::SeqCst);
            assert_eq!(names.last(), Some(&"ready"), "{way}: {name} over {}", road.name());
            assert_eq!(sink.holds(0..TOKENS), way != 14, "{name}");
            drop(handoff);
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
            is_well(&sessions, &honest, leg).await;
            server.shutdown().await;
            assert_eq!(sink.violations.load(Ordering::SeqCst), 0, "{name} over {}", road.name());
        }
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn who_does_not_fall_silent_keeps_no_pages() {
    // At once: each takes as long as a peer may take.
    let mut all = JoinSet::new();
    for &road in ROADS {
        all.spawn(async move {
            let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
            let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
            let script = [Does::AwaitAsk].into_iter().chain(begun([Does::Pongs])).collect();
            let (peer, _server) = answerer(road, 0, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            assert!(matches!(handoff.next().await, Some(HandoffEvent::Started { .. })));
            drop(handoff);
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
            is_well(&sessions, &honest, 0).await;
            sessions.shutdown().await;
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
pub async fn a_frame_may_be_cut_at_any_byte() {
    let good = header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS));
    let whole = [&good.encode()[..], &vec![1; good.bytes as usize + 4]].concat();
    for &road in ROADS.iter().filter(|road| road.is_stream) {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        // Every byte of the header, and some behind it.
        let cuts = (0..=baton_protocol::frame::HEADER_BYTES).chain((81..whole.len()).step_by(97));
        for (leg, cut) in (0..).zip(cuts) {
            let script = begun([Does::Bytes(whole[..cut].to_vec()), Does::HangUp]);
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, _server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            assert_eq!(finish(&mut handoff).await.0.last(), Some(&"lost"), "{cut} over {}", road.name());
            drop(handoff);
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
        }
        is_well(&sessions, &honest, 0).await;
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn frames_on_another_socket_are_lost() {
    let honest = serve(node("p", 1, 4), config(TransportKind::Tcp), engine(&SHAPE, false)).await;
    let sessions = Sessions::new(node("d", 2, 4), TransferConfig { tcp_sockets: 3, ..limits(TCP) }).unwrap();
    // The bad node knows of one socket: all frames come over the first.
    let script = [Does::AwaitAsk].into_iter().chain(begun(right().chain([Does::Silence]))).collect();
    let (peer, _server) = answerer(TCP, 0, script, |_| {}).await;
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let lost = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await;
    match lost {
        Ok(mut handoff) => assert_eq!(finish(&mut handoff).await.0.last(), Some(&"lost")),
        Err(error) => {
            assert!(matches!(error, HandoffError::Session(SessionError::Connect { .. })), "{error}");
        }
    }
    until("pages are let go", || Arc::strong_count(&sink) == 1).await;
    is_well(&sessions, &honest, 0).await;
}

#[tokio::test]
pub async fn a_bad_welcome_is_no_session() {
    let changes: [fn(&mut Welcome); 16] = [
        |welcome| welcome.node = "other".to_owned(),
        |welcome| welcome.incarnation = 5,
        |welcome| welcome.session = 0,
        |welcome| welcome.protocol = 0,
        |welcome| welcome.protocol = u32::MAX,
        |welcome| welcome.data_secret = vec![3; 31].into(),
        |welcome| welcome.checksum = "md5".to_owned(),
        |welcome| welcome.checksum = "none".to_owned(),
        |welcome| welcome.paths.clear(),
        |welcome| welcome.paths[0].kind = "carrier pigeon".to_owned(),
        |welcome| {
            let path = &mut welcome.paths[0];
            path.kind = if path.kind == "ucx" { "shm" } else { "ucx" }.to_owned();
        },
        |welcome| welcome.paths[0].failed = "no room".to_owned(),
        |welcome| welcome.kv = None,
        |welcome| welcome.kv.as_mut().unwrap().head_dim = 3,
        |welcome| welcome.paths[0].addr = "192.0.2.1:9".to_owned(),
        |welcome| welcome.paths[0].addr.clear(),
    ];
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, change) in (0..).zip(changes) {
            let (peer, _server) = answerer(road, leg, Vec::new(), change).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await;
            assert!(refused.is_err(), "change {leg} over {}", road.name());
            assert_eq!(Arc::strong_count(&sink), 1);
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

/// Frames that measure a path, but for the change.
fn probes(change: impl Fn(&mut FrameHeader)) -> Vec<Does> {
    let probe = |seq| {
        let span = KvSpan { layers: 0..1, tokens: 0..1, heads: 0..1 };
        let mut header = FrameHeader { handoff: PROBE, seq, span, bytes: PROBE_BYTES };
        change(&mut header);
        header
    };
    (0..4).map(probe).map(Does::Frame).chain([Does::Silence]).collect()
}

/// Right ones, but for what is told of the third.
fn damaged_probes() -> Vec<Does> {
    let damaged = |does| match does {
        Does::Frame(header) if header.seq == 2 => Does::Damaged(header),
        does => does,
    };
    probes(|_| {}).into_iter().map(damaged).collect()
}

#[tokio::test]
pub async fn a_bad_probe_is_no_session() {
    let cases = || {
        [
            ("another handoff", probes(|header| header.handoff = handoff_id(0))),
            ("another order", probes(|header| header.seq ^= 1)),
            ("one too short", probes(|header| header.bytes -= u32::from(header.seq == 3))),
            ("one too long", probes(|header| header.bytes += u32::from(header.seq == 3))),
            ("a wrong checksum", damaged_probes()),
            ("too few", probes(|_| {}).into_iter().skip(2).collect()),
            ("none", vec![Does::Silence]),
            ("hangs up", vec![Does::HangUp]),
        ]
    };
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let measuring = TransferConfig { probe_bytes: PROBE_BYTES, ..limits(road) };
        let sessions = Sessions::new(node("d", 2, 4), measuring).unwrap();
        for (leg, (name, script)) in (0..).zip(cases()) {
            let (peer, _server) = answerer(road, leg, script, |_| {}).await;
            let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await;
            assert!(refused.is_err(), "{name} over {}", road.name());
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn who_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_addr = listener.local_addr().unwrap().to_string();
    let peer = KvPeer { node: "mute".into(), control_addr, incarnation: Incarnation(1), role: Role::Prefill };
    let sessions = Sessions::new(node("d", 2, 4), limits(TCP)).unwrap();
    let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await.err();
    assert!(matches!(refused, Some(HandoffError::Session(SessionError::Connect { .. }))), "{refused:?}");
}
