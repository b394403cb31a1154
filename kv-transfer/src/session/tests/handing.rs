//! Handoffs between nodes that mean well, whatever happens to them.

use super::*;

#[tokio::test]
async fn kv_arrives_whole_whatever_the_page_sizes() {
    for (transport, pages) in EACH.into_iter().zip([(4, 8), (16, 4), (4, 4), (8, 4)]) {
        let shape = KvShape { page_tokens: pages.0, ..SHAPE };
        let served = serve(node("p", 1, pages.0), config(transport), engine(&shape, false)).await;
        let sessions = Sessions::new(node("d", 2, pages.1), config(transport)).unwrap();
        for leg in 0..3 {
            let have = leg * 8;
            let sink = Memory::empty(&KvShape { page_tokens: pages.1, ..SHAPE }, have..TOKENS);
            let mut handoff =
                sessions.handoff(&served.peer, ask(leg, TOKENS, have), landing(&sink)).await.unwrap();
            let (names, end) = finish(&mut handoff).await;
            assert_eq!(names, ["queued", "started", "first", "ready"]);
            assert!(sink.holds(have..TOKENS));
            let HandoffEvent::Ready { stats, .. } = end else { panic!("lost") };
            assert_eq!((stats.bytes, stats.repaired_frames), (u64::from(TOKENS - have) * 48, 0));
            assert!(handoff.next().await.is_none());
        }
        let outcome = |outcome| served.service.metrics().handoffs(outcome);
        until("pages are let go", || Arc::strong_count(&served.engine.source) == 1).await;
        assert_eq!((outcome(Outcome::Committed), sessions.metrics().handoffs(Outcome::Committed)), (3, 3));
        let reports = sessions.reports();
        assert!(reports.iter().any(|report| report.path.bandwidth() > Some(0.0)), "{reports:?}");
        assert_eq!(reports.iter().map(|report| report.handoffs).sum::<u64>(), 3);
        sessions.shutdown().await;
        served.service.shutdown().await;
        assert_eq!(served.engine.running.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn heads_go_to_whoever_holds_them() {
    let share = |held, tp| HeadShare { held, tp };
    for transport in EACH {
        for (from, to) in [(1, share(0..8, 4)), (8, share(0..8, 2)), (2, share(3..6, 1))] {
            let kv = KvShape { kv_heads: 8, dtype: KvDtype::Fp8, ..SHAPE };
            let source = Memory::computed_by(&kv, share(0..8, from), 0..TOKENS);
            let engine = Arc::new(Engine { source, ..Arc::into_inner(engine(&kv, false)).unwrap() });
            let local = |name, page_tokens, heads| LocalNode {
                kv: KvShape { page_tokens, ..kv.clone() },
                heads,
                ..node(name, 1, page_tokens)
            };
            let served = serve(local("p", 16, share(0..8, from)), config(transport), engine).await;
            let sessions = Sessions::new(local("d", 8, to.clone()), config(transport)).unwrap();
            let sink = Memory::shared(&kv, to, 8..TOKENS);
            let mut handoff =
                sessions.handoff(&served.peer, ask(0, TOKENS, 8), landing(&sink)).await.unwrap();
            assert_eq!(finish(&mut handoff).await.0.last(), Some(&"ready"));
            assert!(sink.holds(8..TOKENS));
        }
    }
}

#[tokio::test]
async fn concurrent_callers_share_one_session_over_a_bad_path() {
    for transport in EACH {
        let faults = FaultsConfig {
            seed: 5,
            drop_probability: 0.05,
            corrupt_probability: 0.05,
            reorder_probability: 0.1,
            ..FaultsConfig::default()
        };
        let faulty = TransferConfig { faults: Some(faults), max_nacks: 20, ..config(transport) };
        let served = serve(node("p", 1, 4), faulty.clone(), engine(&SHAPE, false)).await;
        let sessions = Arc::new(Sessions::new(node("d", 2, 4), faulty).unwrap());
        let mut callers = JoinSet::new();
        for leg in 0..8 {
            let (sessions, peer) = (sessions.clone(), served.peer.clone());
            callers.spawn(async move {
                let sink = Memory::empty(&SHAPE, 0..TOKENS);
                let mut handoff = sessions.handoff(&peer, ask(leg, TOKENS, 0), landing(&sink)).await.unwrap();
                let (names, _) = finish(&mut handoff).await;
                (names.last().copied(), sink.holds(0..TOKENS))
            });
        }
        assert_eq!(callers.join_all().await, [(Some("ready"), true); 8]);
        assert_eq!(sessions.reports().len(), 1);
        assert_eq!(served.service.metrics().orphans() + sessions.metrics().orphans(), 0);
        sessions.shutdown().await;
    }
}

#[tokio::test]
async fn dropping_the_handle_gives_back_both_sides() {
    for transport in EACH {
        let served = serve(node("p", 1, 4), config(transport), engine(&SHAPE, true)).await;
        let sessions = Sessions::new(node("d", 2, 4), config(transport)).unwrap();
        for (leg, declined) in [(0, false), (1, true)] {
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff =
                sessions.handoff(&served.peer, ask(leg, TOKENS, 0), landing(&sink)).await.unwrap();
            while !matches!(next(&mut handoff).await, HandoffEvent::Started { .. }) {}
            if declined {
                handoff.decline();
            } else {
                drop(handoff);
            }
            until("the sender lets go", || Arc::strong_count(&served.engine.source) == 1).await;
            until("the receiver lets go", || Arc::strong_count(&sink) == 1).await;
            until("computing is cancelled", || served.engine.running.load(Ordering::SeqCst) == 0).await;
            assert!(sink.quarantined.load(Ordering::SeqCst));
        }
        let outcomes =
            [Outcome::Cancelled, Outcome::Dropped].map(|outcome| sessions.metrics().handoffs(outcome));
        assert_eq!(outcomes, [1, 1]);
        assert_eq!(sessions.reports()[0].handoffs, 0);
    }
}

#[tokio::test]
async fn busy_and_later_are_told() {
    let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, false)).await;
    let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
    served.engine.busy.store(true, Ordering::SeqCst);
    let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await.unwrap();
    let HandoffEvent::Lost { reason, .. } = next(&mut handoff).await else { panic!("not lost") };
    assert_eq!((reason.code, reason.retry_after), (ErrorCode::Overloaded, Some(Duration::from_millis(70))));
    served.engine.busy.store(false, Ordering::SeqCst);
    let mut handoff = sessions.handoff(&served.peer, ask(1, TOKENS, 0), Box::new(Slot(None))).await.unwrap();
    let (names, _) = finish(&mut handoff).await;
    assert_eq!(names, ["queued", "lost"]);
    until("the sender lets go", || Arc::strong_count(&served.engine.source) == 1).await;
    until("LATER", || served.service.metrics().handoffs(Outcome::Later) == 1).await;
}

#[tokio::test]
async fn a_lost_peer_leaves_whole_pages_and_a_new_incarnation_is_another_session() {
    for transport in EACH {
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let serving = serve(node("p", 1, 4), config(transport), engine(&SHAPE, true));
        let Served { peer, engine, .. } = &*process.spawn(async { Box::new(serving.await) }).await.unwrap();
        let sessions = Sessions::new(node("d", 2, 4), config(transport)).unwrap();
        let sink = Memory::empty(&SHAPE, 4..TOKENS);
        let mut handoff = sessions.handoff(peer, ask(0, TOKENS, 4), landing(&sink)).await.unwrap();
        until("20 tokens are in", || sink.holds(4..20)).await;
        // Everything of the process goes at once.
        process.shutdown_background();
        let (_, end) = finish(&mut handoff).await;
        let HandoffEvent::Lost { complete_tokens, sink: kept, reason } = end else { panic!("ready") };
        // The last frame may have landed just before, or not quite have been counted.
        assert!(
            (4..=20).contains(&complete_tokens) && complete_tokens % 4 == 0 && sink.holds(4..complete_tokens)
        );
        assert_eq!((kept.is_some(), reason.code), (complete_tokens > 4, ErrorCode::PeerLost));
        drop(kept);
        until("the sender lets go", || Arc::strong_count(&engine.source) == 1).await;
        until("the receiver lets go", || Arc::strong_count(&sink) == 1).await;

        let again = serve(node("p", 7, 4), config(transport), tests::engine(&SHAPE, false)).await;
        let stale = KvPeer { incarnation: peer.incarnation, ..again.peer.clone() };
        let refused = sessions.handoff(&stale, ask(1, TOKENS, 0), Box::new(Slot(None))).await.err();
        let expected =
            SessionError::Refused { field: "incarnation".into(), mine: "1".into(), yours: "7".into() };
        assert_eq!(refused, Some(HandoffError::Session(expected)));
        let sink = Memory::empty(&SHAPE, 0..TOKENS);
        let mut handoff = sessions.handoff(&again.peer, ask(2, TOKENS, 0), landing(&sink)).await.unwrap();
        assert_eq!(finish(&mut handoff).await.0.last(), Some(&"ready"));
        assert!(sink.holds(0..TOKENS));
    }
}

#[tokio::test]
async fn a_new_incarnation_ends_the_old_session_at_once() {
    let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, true)).await;
    let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut old = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
    // The decode node restarts; its old process has not noticed that it is dead.
    let restarted = Sessions::new(node("d", 3, 4), config(EACH[1])).unwrap();
    let other = Memory::empty(&SHAPE, 0..TOKENS);
    let _young = restarted.handoff(&served.peer, ask(0, TOKENS, 0), landing(&other)).await.unwrap();
    assert_eq!(finish(&mut old).await.0.last(), Some(&"lost"));
    until("one session is left", || sessions.reports().is_empty() && restarted.reports().len() == 1).await;
}

#[tokio::test]
async fn shutdown_on_either_side_ends_everything() {
    for prefill_first in [true, false] {
        let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, true)).await;
        let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
        let sink = Memory::empty(&SHAPE, 0..TOKENS);
        let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
        while !matches!(next(&mut handoff).await, HandoffEvent::Started { .. }) {}
        if prefill_first {
            served.service.shutdown().await;
        } else {
            sessions.shutdown().await;
        }
        let (_, end) = finish(&mut handoff).await;
        drop(end);
        until("the receiver lets go", || Arc::strong_count(&sink) == 1).await;
        until("the sender lets go", || Arc::strong_count(&served.engine.source) == 1).await;
        assert!(sessions.reports().is_empty());
    }
}
