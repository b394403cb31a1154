//! The states of both ends without streams: numbers, pings, digests.

use std::time::Instant;

use baton_protocol::{
    FrameHeader, HandoffId, KvSource, KvSpan, SessionId,
    wire::{self, Control, control::Message},
};

use super::*;
use crate::{
    TransferMetrics,
    metrics::Side,
    session::{
        control::Inbox,
        receiving::Receiving,
        running::SessionState,
        sending::{self, Receiver, Sending},
    },
    testing::{handoff_id, path},
    transport::{Checksum, FrameSender, PathError, Received, offer::Terms},
};

const SESSION: SessionId = SessionId(40);

fn quiet() -> TransferConfig {
    TransferConfig { probe_bytes: 0, ..TransferConfig::default() }
}

fn receiving() -> (Arc<Receiving>, TransferMetrics) {
    let metrics = TransferMetrics::new(Side::Receiving);
    let parties = ("p".into(), node("d", 2, 4));
    let receiving = Receiving::new(SESSION, parties, quiet(), path(), metrics.clone());
    assert!(matches!(sent(&*receiving)[..], [Message::Chosen(_)]));
    (receiving, metrics)
}

fn sending() -> Arc<Sending> {
    sending_with(quiet())
}

fn sending_with(config: TransferConfig) -> Arc<Sending> {
    let terms = Terms { session: SESSION, secret: [0; 32], checksum: Checksum::Crc32c, config };
    let decode = Receiver { node: "d".into(), incarnation: Incarnation(2), heads: vec![0..SHAPE.kv_heads] };
    let parties = (decode, node("p", 1, 4));
    Sending::new(&terms, parties, path(), Inbox::new(SESSION), TransferMetrics::new(Side::Sending))
}

fn control(number: u64, message: Message) -> Control {
    Control { session: SESSION.0, number, message: Some(message) }
}

fn ping(open: u32, xor: u64) -> Message {
    Message::Ping(wire::SessionPing { open, xor, reply: false })
}

fn sent(state: &impl SessionState) -> Vec<Message> {
    std::iter::from_fn(|| state.pop()).filter_map(|control| control.message).collect()
}

#[test]
fn a_gap_or_another_session_ends_it() {
    let now = Instant::now();
    let (receiving, _) = receiving();
    assert_eq!(receiving.control(control(2, ping(0, 0)), now), Ok(()));
    assert!(receiving.control(control(4, ping(0, 0)), now).is_err());
    let sending = sending();
    assert!(sending.control(control(2, ping(0, 0)), now).is_ok());
    assert!(sending.control(control(2, ping(0, 0)), now).is_err());
    let foreign = Control { session: 41, ..control(3, ping(0, 0)) };
    assert!(sending.control(foreign, now).is_err());
    assert!(sending.control(control(3, Message::Start(Default::default())), now).is_err());
}

#[test]
fn a_silent_peer_is_lost_after_three_pings() {
    let begun = Instant::now();
    let (receiving, sending) = (receiving().0, sending());
    let at = |ms| begun + Duration::from_millis(ms);
    for state in [&*receiving as &dyn SessionState, &*sending] {
        assert!(state.tick(at(2_900)).is_ok());
        assert!(state.tick(at(3_500)).is_err());
    }
    receiving.control(control(2, ping(0, 0)), at(2_900)).unwrap();
    assert!(receiving.tick(at(3_500)).is_ok(), "anything heard counts");
}

/// The session lives as long as anything comes through, or nothing was asked for in vain.
#[test]
fn a_data_path_that_hangs_ends_it() {
    let lost = |something_came: bool| {
        let (receiving, _) = receiving();
        let _handoff =
            receiving.open(&ask(0, TOKENS, 0), Box::new(Slot(Some(Memory::empty(&SHAPE, 0..TOKENS)))));
        let id = Some(handoff_id(0).into());
        let start = wire::Start { id: id.clone(), ..Default::default() };
        let first = wire::First { id: id.clone(), ..Default::default() };
        let fin = wire::Fin { id, frames: 1, digest: 0 };
        let begun = Instant::now();
        receiving.control(control(2, Message::Start(start)), begun).unwrap();
        receiving.control(control(3, Message::First(first)), begun).unwrap();
        receiving.control(control(4, Message::Fin(fin)), begun).unwrap();
        if something_came {
            let span = KvSpan { layers: 0..1, tokens: 0..4, heads: 0..SHAPE.kv_heads };
            let header = FrameHeader { handoff: handoff_id(7), seq: 0, span, bytes: 64 };
            let late = Received { header, crc: 0, intact: true, duration: Duration::ZERO };
            receiving.frame(&late, &mut |_| {});
        }
        (5..50).find_map(|number| {
            let now = begun + Duration::from_millis(250 * number);
            receiving.control(control(number, ping(0, 0)), now).unwrap();
            receiving.tick(now).err().map(|_| number)
        })
    };
    let ended = lost(false);
    assert!(ended.is_some_and(|ticks| ticks > 8), "not before it was asked again and again: {ended:?}");
    assert_eq!(lost(true), None);
}

#[test]
fn pings_carry_what_is_open() {
    let (receiving, _) = receiving();
    let begun = Instant::now();
    let open = |leg| receiving.open(&ask(leg, TOKENS, 0), Box::new(Slot(None))).unwrap();
    let (_one, two) = (open(0), open(1));
    drop(two);
    receiving.tick(begun + Duration::from_millis(1_500)).unwrap();
    let messages = sent(&*receiving);
    let xor = handoff_id(0).fold();
    assert_eq!(messages.last(), Some(&ping(1, xor)), "{messages:?}");
    assert!(matches!(messages[..3], [Message::Prefill(_), Message::Prefill(_), Message::Abort(_)]));
}

#[test]
fn a_sender_that_knows_more_or_less_says_so() {
    let now = Instant::now();
    let sending = sending();
    let prefill = Message::Prefill((&ask(3, TOKENS, 0)).into());
    assert!(sending.control(control(2, prefill.clone()), now).unwrap().is_some());
    assert!(
        sending.control(control(3, prefill), now).unwrap().is_none(),
        "asked for twice is asked for once"
    );
    sending.control(control(4, ping(1, handoff_id(3).fold())), now).unwrap();
    assert!(matches!(sent(&*sending)[..], [Message::Ping(wire::SessionPing { reply: true, .. })]));
    sending.control(control(5, ping(0, 0)), now).unwrap();
    let messages = sent(&*sending);
    let expected = wire::Reconcile { ids: vec![handoff_id(3).into()], up_to_number: 5 };
    assert_eq!(messages[0], Message::Reconcile(expected));
}

#[tokio::test]
async fn reconciling_ends_orphans_and_nothing_younger() {
    let (receiving, metrics) = receiving();
    let open = |leg| receiving.open(&ask(leg, TOKENS, 0), Box::new(Slot(None))).unwrap();
    let (mut known, mut orphan, mut young) = (open(0), open(1), open(2));
    sent(&*receiving);
    let theirs = HandoffId { leg: 9, ..handoff_id(0) };
    // PREFILLs have the numbers 3, 4 and 5.
    let ids = vec![handoff_id(0).into(), theirs.into()];
    let reconcile = Message::Reconcile(wire::Reconcile { ids, up_to_number: 4 });
    receiving.control(control(2, reconcile), Instant::now()).unwrap();
    assert!(matches!(orphan.next().await, Some(HandoffEvent::Lost { .. })));
    assert_eq!(metrics.orphans(), 2);
    let aborted = |message: Message| match message {
        Message::Abort(abort) => HandoffId::try_from(abort.id.unwrap()).unwrap().leg,
        other => panic!("{other:?}"),
    };
    assert_eq!(sent(&*receiving).into_iter().map(aborted).collect::<Vec<_>>(), [9, 1]);
    receiving.end(SessionError::down("test"));
    receiving.path_closed();
    for handoff in [&mut known, &mut young] {
        assert!(matches!(handoff.next().await, Some(HandoffEvent::Lost { .. })));
    }
    assert!(receiving.open(&ask(5, TOKENS, 0), Box::new(Slot(None))).is_err());
}

/// Notes what is begun, and how much of it when a frame is sent.
#[derive(Default)]
struct Noting {
    begun: Vec<u32>,
    sent: Vec<(u32, usize)>,
}

const CREDIT: u32 = 6;

impl FrameSender for Noting {
    fn ahead(&self) -> usize {
        2
    }

    fn begin(&mut self, header: &FrameHeader, _: &Arc<dyn KvSource>) -> Result<(), PathError> {
        self.begun.push(header.seq);
        Ok(())
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        _: &Arc<dyn KvSource>,
        _: Option<u32>,
    ) -> Result<u32, PathError> {
        self.sent.push((header.seq, self.begun.len()));
        if header.seq + 1 == CREDIT { Err(PathError::Stalled) } else { Ok(0) }
    }
}

#[tokio::test]
async fn frames_are_begun_in_order_while_others_are_sent() {
    let now = Instant::now();
    // A frame has one row, so that there are more than the credit allows.
    let sending = sending_with(TransferConfig { frame_bytes: 1, ..quiet() });
    let engine = engine(&node("p", 1, 4).kv, false);
    let prefill = Message::Prefill((&ask(0, TOKENS, 0)).into());
    let Some(sending::Call::Prefill(job)) = sending.control(control(2, prefill), now).unwrap() else {
        panic!("nothing to prefill");
    };
    let mut news = JoinSet::new();
    sending.start(*job, &*engine, &mut news);
    while news.join_next().await.is_some() {}
    // Not before START.
    let credit = wire::Credit { id: Some(handoff_id(0).into()), frames: CREDIT };
    sending.control(control(3, Message::Credit(credit)), now).unwrap();
    let state = sending.clone();
    let sent = tokio::task::spawn_blocking(move || {
        let mut path = Noting::default();
        (state.send(&mut path), path)
    });
    let sent = timeout(PATIENT, sent).await;
    // Whatever happened, the thread does not wait for frames that never come.
    sending.end(SessionError::down("over"));
    let (ended, path) = sent.unwrap().unwrap();
    assert!(matches!(ended, PathError::Stalled));
    assert_eq!(path.begun, [0, 1, 2, 3, 4, 5]);
    assert_eq!(path.sent, [(0, 3), (1, 4), (2, 5), (3, 6), (4, 6), (5, 6)]);
}
