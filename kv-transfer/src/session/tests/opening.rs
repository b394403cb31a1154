//! Who gets a session, over which path.

use super::*;

async fn refusal(change: impl Fn(&mut LocalNode, &mut TransferConfig)) -> Option<(String, String, String)> {
    let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, false)).await;
    let (mut local, mut config) = (node("d", 2, 4), config(EACH[1]));
    change(&mut local, &mut config);
    let sessions = Sessions::new(local, config).unwrap();
    match sessions.handoff(&served.peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await {
        Err(HandoffError::Session(SessionError::Refused { field, mine, yours })) => {
            Some((field, mine, yours))
        }
        _ => None,
    }
}

#[tokio::test]
pub async fn nodes_that_do_not_fit_are_told_why() {
    let words = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(refusal(|_, _| {}).await, None);
    assert_eq!(refusal(|d, _| d.cluster = "other".into()).await, words("cluster", "other", "test"));
    assert_eq!(refusal(|d, _| d.model_fingerprint = "g".into()).await, words("model fingerprint", "g", "f"));
    assert_eq!(
        refusal(|d, _| d.kv.layers = 2).await,
        words("kv shape", "2 layers of 2 heads of 2 bf16", "3 layers of 2 heads of 2 bf16")
    );
    let mine = "heads 0 to 2 on 3 ranks: a tensor parallel size of 3, which is none of 1, 2, 4 and 8";
    assert_eq!(refusal(|d, _| d.heads.tp = 3).await, words("kv heads", mine, "heads 0 to 2 on 1 ranks"));
    let mine = "heads 1 to 3 on 1 ranks: heads 1..3 of a model with 2";
    assert_eq!(refusal(|d, _| d.heads.held = 1..3).await, words("kv heads", mine, "heads 0 to 2 on 1 ranks"));
    assert_eq!(refusal(|d, _| d.heads.tp = 8).await, None);
    let inproc = Wanted::Only(TransportKind::Inproc);
    let refused = refusal(|_, c| c.transport = inproc).await.unwrap();
    assert_eq!((&*refused.0, &*refused.2), ("transport", "tcp"));
    assert!(refused.1.starts_with("inproc at "), "{}", refused.1);
}

#[tokio::test]
pub async fn every_path_is_measured_and_the_choice_is_told_to_both() {
    let auto = || TransferConfig { transport: Wanted::Auto, tcp_sockets: 3, ..config(EACH[1]) };
    let served = serve(node("p", 1, 4), auto(), engine(&SHAPE, false)).await;
    let sessions = Sessions::new(node("d", 2, 4), auto()).unwrap();
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
    finish(&mut handoff).await;
    let path = &sessions.reports()[0].path;
    for each in EACH {
        let tried = path.tried.iter().find(|tried| tried.transport == each).unwrap();
        assert!(matches!(tried.outcome, Ok(Some(rate)) if rate > 0.0), "{tried:?}");
    }
    assert!(path.tried.iter().all(|tried| tried.outcome.clone().unwrap() <= path.bandwidth()));
    assert!(sink.holds(0..TOKENS) && path.fallback().is_none());
    assert_eq!(served.service.paths()[0].tried, path.tried);
}

#[tokio::test]
pub async fn another_transport_is_taken_only_with_leave() {
    let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, false)).await;
    let allowed = TransferConfig { transport: Wanted::Only(EACH[0]), fallback: true, ..config(EACH[1]) };
    let sessions = Sessions::new(node("d", 2, 4), allowed).unwrap();
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
    finish(&mut handoff).await;
    let report = sessions.reports().remove(0);
    assert!(report.path.transport == EACH[1] && report.path.others_fallback().is_none());
    assert!(KvPath::from(report).fallback.starts_with("told to use inproc, uses tcp"));
    let allowed = TransferConfig { transport: Wanted::Only(EACH[0]), fallback: true, ..config(EACH[1]) };
    let served = serve(node("p", 1, 4), allowed, engine(&SHAPE, false)).await;
    let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
    let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
    finish(&mut handoff).await;
    let said = KvPath::from(sessions.reports().remove(0)).fallback;
    assert!(said.starts_with("the prefill node was told to use inproc, uses tcp"), "{said}");
    for kind in TransportKind::ALL.into_iter().filter(|kind| !offer::built().any(|built| built == *kind)) {
        let absent = TransferConfig { transport: Wanted::Only(kind), ..config(EACH[1]) };
        let error = Sessions::new(node("d", 2, 4), absent).err();
        let named = kind.as_str();
        let refused = matches!(&error, Some(SessionError::NotBuilt { transport, .. }) if *transport == named);
        assert!(refused, "{error:?}");
        if named == "ucx" {
            assert!(error.unwrap().to_string().contains("--features ucx"));
        }
    }
}

#[tokio::test]
pub async fn checksums_are_off_only_where_both_say_so() {
    for (theirs, end) in [(Checksum::None, "ready"), (Checksum::Crc32c, "lost")] {
        // Every frame is damaged on its way: only checksums tell.
        let faults = FaultsConfig { corrupt_probability: 1.0, ..FaultsConfig::default() };
        let faulty = TransferConfig { faults: Some(faults), checksum: theirs, ..config(EACH[1]) };
        let served = serve(node("p", 1, 4), faulty, engine(&SHAPE, false)).await;
        let unchecked = TransferConfig { checksum: Checksum::None, ..config(EACH[1]) };
        let sessions = Sessions::new(node("d", 2, 4), unchecked).unwrap();
        let sink = Memory::empty(&SHAPE, 0..TOKENS);
        let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
        let (names, _) = finish(&mut handoff).await;
        assert_eq!(names.last(), Some(&end));
    }
}

#[tokio::test]
pub async fn nothing_beyond_this_machine() {
    let local = node("p", 1, 4);
    let open = TransferConfig { data_listen: "0.0.0.0:0".parse().unwrap(), ..config(EACH[1]) };
    let refused = PrefillService::new(local.clone(), open, engine(&SHAPE, false)).err();
    let addr = "0.0.0.0:0".parse().unwrap();
    assert_eq!(refused, Some(ReachError::NoCertificates { addr }.into()));
    let sessions = Sessions::new(local, config(EACH[1])).unwrap();
    for addr in ["192.0.2.1:80", "example.com:80", "localhost.example.com:80"] {
        let peer = KvPeer {
            node: NodeId::from("p"),
            control_addr: addr.to_owned(),
            incarnation: Incarnation(1),
            role: Role::Prefill,
        };
        let error = sessions.handoff(&peer, ask(0, 5, 0), Box::new(Slot(None))).await.err();
        let beyond = |addr| ReachError::NoCertificates { addr };
        let expected = addr.parse().map_or(ReachError::Malformed { addr: addr.to_owned() }, beyond);
        assert_eq!(error, Some(SessionError::from(expected).into()));
    }
}

#[tokio::test]
pub async fn data_sockets_need_the_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let expected = tcp::listener::Expected::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(tcp::listener::listen(listener, expected.clone(), Duration::from_millis(200)));
    let session = baton_protocol::SessionId(5);
    let mut expectation = expected.expect(session, [1; 32]);
    let hello = |secret| tcp::SocketHello { session, secret, index: 0, sockets: 1 }.encode().to_vec();
    for wrong in [hello([2; 32]), vec![0; tcp::HELLO_BYTES], hello([1; 32])[..40].to_vec()] {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, &wrong).await.unwrap();
        // Hung up on, at the latest after the limit; never taken.
        assert!(matches!(timeout(PATIENT, socket.read_u8()).await, Ok(Err(_))));
    }
    let mut socket = TcpStream::connect(addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &hello([1; 32])).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), tcp::TAKEN);
    assert!(expectation.sockets().await.is_some());
}

#[tokio::test]
pub async fn asks_that_make_no_sense_are_not_sent() {
    let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
    let peer = KvPeer {
        node: "p".into(),
        control_addr: "127.0.0.1:1".into(),
        incarnation: Incarnation(1),
        role: Role::Prefill,
    };
    let error = sessions.handoff(&peer, ask(0, 8, 8), Box::new(Slot(None))).await.err();
    assert_eq!(error, Some(HandoffError::Ask { field: "have" }));
    let error = sessions.handoff(&peer, ask(0, 8, 0), Box::new(Slot(None))).await.err();
    assert!(matches!(error, Some(HandoffError::Session(SessionError::Connect { .. }))), "{error:?}");
}
