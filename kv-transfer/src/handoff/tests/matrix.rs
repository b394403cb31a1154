//! Every event in every state of both machines: no panic, no second end, no
//! pages kept, and an answer wherever the other side waits for one.

use baton_protocol::wire;

use super::*;

fn sender_in(state: usize) -> (Sender, Vec<SenderAction>) {
    let mut sender = Sender::new(sender_terms());
    let mut script = script(Memory::computed(&SHAPE, 0..TOKENS));
    let mut actions = Vec::new();
    let mut tell = |event| actions.extend(sender.on(event));
    let progress = [0, 3, 7, 8, 8, 2, 2, 8, 8][state];
    for _ in 0..progress {
        tell(SenderEvent::Progress(script.pop_front().unwrap()));
    }
    match state {
        // Some frames in line; everything in line; everything written, FIN said.
        2 => tell(SenderEvent::Credit(2)),
        3 => tell(SenderEvent::Credit(100)),
        4 => {
            tell(SenderEvent::Credit(100));
            (0..20).for_each(|seq| tell(SenderEvent::Sent { seq, crc: seq }));
        }
        // Given up by the receiver with a frame under way; failed here; closed.
        5 => {
            tell(SenderEvent::Credit(1));
            tell(SenderEvent::Abort);
        }
        6 => tell(SenderEvent::Progress(Progress::Failed(Failure::new(ErrorCode::Internal, "x")))),
        7 => tell(SenderEvent::Abort),
        8 => tell(SenderEvent::SessionDown),
        _ => {}
    }
    (sender, actions)
}

fn sender_event(which: usize) -> SenderEvent {
    let source = Memory::computed(&SHAPE, 0..TOKENS);
    match which {
        0 => SenderEvent::Accepted(Queue::default()),
        1 => SenderEvent::ProgressEnded,
        2 => SenderEvent::Credit(3),
        3 => SenderEvent::Later,
        4 => SenderEvent::Commit { drop: false },
        5 => SenderEvent::Commit { drop: true },
        6 => SenderEvent::Nack(0),
        7 => SenderEvent::Nack(u32::MAX),
        8 => SenderEvent::Abort,
        9 => SenderEvent::Unreadable,
        10 => SenderEvent::SessionDown,
        11 => SenderEvent::Refused(crate::BusyReason { eta: Duration::ZERO, reason: String::new() }),
        which => SenderEvent::Progress(script(source).remove(which - 12).unwrap()),
    }
}

#[test]
fn every_event_in_every_state_of_the_sender() {
    for state in 0..9 {
        for event in 0..20 {
            let (mut sender, mut actions) = sender_in(state);
            for _ in 0..2 {
                actions.extend(sender.on(sender_event(event)));
            }
            actions.extend(sender.on(SenderEvent::Abort));
            // Whatever was put in line comes back in one way or another.
            let frames = actions.iter().filter(|action| matches!(action, SenderAction::Frame(..))).count();
            drop(actions.extract_if(.., |action| matches!(action, SenderAction::Frame(..))));
            for _ in 0..frames {
                actions.extend(sender.on(SenderEvent::Skipped));
            }
            let count =
                |want: fn(&SenderAction) -> bool| actions.iter().filter(|action| want(action)).count();
            assert_eq!(
                count(|action| matches!(action, SenderAction::Close(_))),
                1,
                "state {state}, event {event}"
            );
            assert!(!sender.is_open());
            let quiet = count(|action| matches!(action, SenderAction::Send(Message::Quiesced(_))));
            // A session that is gone, and a handoff the receiver closed without waiting, owe nothing.
            let owed = state != 8 && event != 10 && !matches!(event, 3 | 4);
            assert!(quiet > 0 || !owed, "state {state}, event {event}: ABORT unanswered");
        }
    }
}

fn receiver_in(state: usize, sink: &Arc<Memory>) -> (Receiver, Vec<ReceiverAction>) {
    let now = Instant::now();
    let mut receiver = Receiver::new(receiver_terms(), Box::new(Slot(Some(sink.clone()))));
    let mut actions = Vec::new();
    let mut tell = |event: ReceiverEvent<'_>| actions.extend(receiver.on(event, now));
    if state > 0 {
        tell(ReceiverEvent::Control(Message::Start(Default::default())));
    }
    match state {
        // A first token; a frame being read; given up; lost while a frame is being read; gone.
        2 => tell(ReceiverEvent::Control(Message::First(Default::default()))),
        3 => tell(ReceiverEvent::Arriving(&frame(0))),
        4 => tell(ReceiverEvent::Cancel),
        5 => {
            tell(ReceiverEvent::Arriving(&frame(0)));
            tell(ReceiverEvent::SessionDown(Failure::new(ErrorCode::PeerLost, "x")));
        }
        6 => tell(ReceiverEvent::PathClosed),
        _ => {}
    }
    (receiver, actions)
}

fn frame(seq: u32) -> FrameHeader {
    let span = SHAPE.span(0..1, HAVE + seq..HAVE + seq + 1);
    crate::testing::header(&SHAPE, seq, span)
}

fn receiver_event<'a>(which: usize, frame: &'a FrameHeader, received: &'a Received) -> ReceiverEvent<'a> {
    match which {
        0 => ReceiverEvent::Control(Message::Queued(Default::default())),
        1 => ReceiverEvent::Control(Message::Busy(Default::default())),
        2 => ReceiverEvent::Control(Message::Start(Default::default())),
        3 => ReceiverEvent::Control(Message::First(Default::default())),
        4 => ReceiverEvent::Control(Message::Fin(Default::default())),
        5 => ReceiverEvent::Control(Message::Fin(wire::Fin { frames: u32::MAX, ..Default::default() })),
        6 => ReceiverEvent::Control(Message::Abort(Default::default())),
        7 => ReceiverEvent::Control(Message::Quiesced(Default::default())),
        8 => ReceiverEvent::Control(Message::Commit(Default::default())),
        9 => ReceiverEvent::Tick { moved: Instant::now() },
        10 => ReceiverEvent::Cancel,
        11 => ReceiverEvent::Decline,
        12 => ReceiverEvent::Orphaned,
        13 => ReceiverEvent::SessionDown(Failure::new(ErrorCode::PeerLost, "y")),
        14 => ReceiverEvent::PathClosed,
        15 => ReceiverEvent::Arriving(frame),
        _ => ReceiverEvent::Arrived(received),
    }
}

#[test]
fn every_event_in_every_state_of_the_receiver() {
    for state in 0..7 {
        for which in 0..17 {
            let sink = Memory::empty(&SHAPE, HAVE..TOKENS);
            let (mut receiver, mut actions) = receiver_in(state, &sink);
            let received = Received { header: frame(0), crc: 0, intact: true, duration: Duration::ZERO };
            for seq in 0..2 {
                let frame = frame(seq);
                actions.extend(receiver.on(receiver_event(which, &frame, &received), Instant::now()));
            }
            let ends = |actions: &[ReceiverAction]| {
                let told = |action: &&ReceiverAction| {
                    use {HandoffEvent as Event, ReceiverAction::Emit};
                    matches!(action, Emit(Event::Ready { .. } | Event::Lost { .. }))
                };
                actions.iter().filter(told).count()
            };
            let left = state == 4 || matches!(which, 10 | 11);
            actions.extend(receiver.on(ReceiverEvent::PathClosed, Instant::now()));
            assert!(ends(&actions) == 1 || (left && ends(&actions) <= 1), "state {state}, event {which}");
            let closed = actions.iter().filter(|action| matches!(action, ReceiverAction::Close(_))).count();
            assert_eq!(closed, 1, "state {state}, event {which}");
            drop((receiver, actions));
            assert_eq!(Arc::strong_count(&sink), 1);
        }
    }
}

#[test]
fn frames_that_no_sender_of_ours_would_send() {
    let wrong: [fn(&mut FrameHeader); 7] = [
        |frame| frame.span.tokens = 0..1,
        |frame| frame.span.tokens = HAVE..TOKENS + 1,
        |frame| frame.span.layers = 2..4,
        |frame| frame.span.heads = 0..1,
        |frame| frame.span.heads = 1..3,
        |frame| frame.bytes += 1,
        |frame| frame.seq = 2,
    ];
    for (which, change) in wrong.into_iter().enumerate() {
        let sink = Memory::empty(&SHAPE, HAVE..TOKENS);
        let (mut receiver, _) = receiver_in(1, &sink);
        let mut header = frame(0);
        change(&mut header);
        let actions = receiver.on(ReceiverEvent::Arriving(&header), Instant::now());
        let landed = actions.iter().any(|action| matches!(action, ReceiverAction::Land(_)));
        let aborted = actions.iter().any(|action| matches!(action, ReceiverAction::Send(Message::Abort(_))));
        assert!(!landed && aborted, "change {which}");
    }
}

#[test]
fn a_wrong_digest_keeps_nothing() {
    let sink = Memory::empty(&SHAPE, HAVE..TOKENS);
    let (mut receiver, _) = receiver_in(2, &sink);
    let now = Instant::now();
    let whole = SHAPE.span(0..3, HAVE..TOKENS);
    let header = crate::testing::header(&SHAPE, 0, whole);
    receiver.on(ReceiverEvent::Arriving(&header), now);
    let received = Received { header, crc: 0, intact: true, duration: Duration::ZERO };
    receiver.on(ReceiverEvent::Arrived(&received), now);
    let fin = Message::Fin(wire::Fin { id: None, frames: 1, digest: 1 });
    let actions = receiver.on(ReceiverEvent::Control(fin), now);
    let lost = actions.iter().find_map(|action| match action {
        ReceiverAction::Emit(HandoffEvent::Lost { complete_tokens, sink, .. }) => {
            Some((*complete_tokens, sink.is_none()))
        }
        _ => None,
    });
    assert_eq!(lost, Some((HAVE, true)));
    assert!(sink.quarantined.load(Ordering::SeqCst));
}

#[test]
fn lost_is_told_only_when_no_frame_is_being_read() {
    let lost = |actions: &[ReceiverAction]| {
        actions.iter().any(|action| matches!(action, ReceiverAction::Emit(HandoffEvent::Lost { .. })))
    };
    let received = Received { header: frame(0), crc: 0, intact: true, duration: Duration::ZERO };
    let aborted = || ReceiverEvent::Control(Message::Abort(Default::default()));
    let down = || ReceiverEvent::SessionDown(Failure::new(ErrorCode::PeerLost, "x"));
    for end in [aborted(), down(), ReceiverEvent::Orphaned] {
        let sink = Memory::empty(&SHAPE, HAVE..TOKENS);
        let (mut receiver, _) = receiver_in(3, &sink);
        assert!(!lost(&receiver.on(end, Instant::now())));
        assert!(!lost(
            &receiver.on(ReceiverEvent::Control(Message::Quiesced(Default::default())), Instant::now())
        ));
        assert!(lost(&receiver.on(ReceiverEvent::Arrived(&received), Instant::now())));
    }
}
