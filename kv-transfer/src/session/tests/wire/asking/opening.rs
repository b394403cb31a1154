//! Bad decode nodes on their way to a session: greetings, choices, and strangers at its paths.

use super::*;

/// What is wrong with a HELLO.
type Change = fn(&mut Hello);

/// What a decode node says first on its only data socket.
fn socket_hello(welcome: &Welcome) -> Vec<u8> {
    let Terms { session, secret, .. } = terms(TCP, welcome);
    tcp::SocketHello { session, secret, index: 0, sockets: 1 }.encode().to_vec()
}

#[tokio::test]
async fn a_bad_choice_is_no_session() {
    let tried = |kind: &str| wire::Tried { kind: kind.to_owned(), ..Default::default() };
    let choice = |kind: &str, tried: Vec<wire::Tried>| {
        says([Message::Chosen(wire::Chosen { kind: kind.to_owned(), tried })])
    };
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let name = road.name();
        let closed = if name == "ucx" { "shm" } else { "ucx" };
        let other = Control { session: 5, number: 2, message: Some(chosen(name)) };
        let cases = [
            ("of a transport that nobody knows", choice("carrier pigeon", Vec::new())),
            ("of a transport that is not open", choice(closed, Vec::new())),
            ("of nothing", choice("", Vec::new())),
            ("after trying what nobody knows", choice(name, vec![tried("carrier pigeon")])),
            ("with a number left out", numbered(3, Some(chosen(name)))),
            ("for another session", vec![Said::Control(other)]),
            ("left out", says([prefill(|_| {})])),
            ("never made", Vec::new()),
        ];
        for (leg, (case, said)) in (0..).zip(cases) {
            let (welcome, mut asker) = Asker::welcomed(&served, hello.clone()).await;
            let path = Reading::new(road.take(&welcome).await.unwrap());
            for said in said {
                asker.say(said).await;
            }
            assert!(asker.meets(&Then::CutOff).await, "a choice {case} over {name}");
            drop((asker, path));
            is_well(&served, road, leg).await;
        }
        // And of a path to which nobody came; in process nobody has to come.
        if road.kind != TransportKind::Inproc {
            let (_, mut asker) = Asker::welcomed(&served, hello.clone()).await;
            asker.say(Said::Message(chosen(name))).await;
            assert!(asker.meets(&Then::CutOff).await, "nobody came over {name}");
            is_well(&served, road, 99).await;
        }
    }
}

#[tokio::test]
async fn who_wants_the_largest_probes_and_reads_none_is_cut_off() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let (welcome, mut asker) = Asker::welcomed(&served, Hello { probe_bytes: u32::MAX, ..hello }).await;
        let path = road.take(&welcome).await.unwrap();
        asker.say(Said::Message(chosen(road.name()))).await;
        assert!(asker.meets(&Then::CutOff).await, "over {}", road.name());
        drop((asker, path));
        is_well(&served, road, 0).await;
    }
}

#[tokio::test]
async fn a_bad_hello_is_refused_by_name() {
    let changes: [(&str, Change); 15] = [
        ("protocol", |hello| hello.protocol_min = 99),
        ("protocol", |hello| hello.protocol_max = 0),
        ("cluster", |hello| hello.cluster = "other".repeat(1000)),
        ("incarnation", |hello| hello.expect_incarnation = 7),
        ("model fingerprint", |hello| hello.model_fingerprint.clear()),
        ("kv shape", |hello| hello.kv = None),
        ("kv shape", |hello| hello.kv.as_mut().unwrap().layers = u32::MAX),
        ("kv shape", |hello| hello.kv.as_mut().unwrap().dtype = "int3".to_owned()),
        ("kv shape", |hello| hello.kv.as_mut().unwrap().page_tokens = 0),
        ("kv heads", |hello| hello.tp = 3),
        ("kv heads", |hello| (hello.heads_start, hello.heads_end) = (5, 3)),
        ("kv heads", |hello| hello.heads_end = u32::MAX),
        ("transport", |hello| hello.offers.clear()),
        ("transport", |hello| hello.offers[0].kind = "carrier pigeon".to_owned()),
        ("transport", |hello| hello.offers[0].place = "\u{e9}lsewhere".repeat(1000)),
    ];
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        for (field, change) in changes {
            let mut hello = hello.clone();
            change(&mut hello);
            match Asker::greet(&served, hello).await.0 {
                Some(Message::Refuse(refuse)) => assert_eq!(refuse.field, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        is_well(&served, road, 0).await;
    }
}

#[tokio::test]
async fn no_hello_no_session() {
    let (served, hello) = prefill_node(TCP).await;
    let mut early = opening(prefill(|_| {}));
    let mut of_session = opening(Message::Hello(hello.clone()));
    of_session.session = 7;
    let mut late = opening(Message::Hello(hello));
    late.number = 2;
    early.session = 0;
    for first in [Some(early), Some(of_session), Some(late), None] {
        let client = PrefillClient::connect(format!("http://{}", served.peer.control_addr)).await;
        let (up, messages) = mpsc::channel(4);
        if let Some(first) = first {
            up.send(first).await.unwrap();
        }
        // Refused, or the time for a HELLO passes.
        let answered = timeout(PATIENT, client.unwrap().session(ReceiverStream::new(messages))).await;
        assert!(answered.expect("neither answered nor cut off").is_err());
    }
    // What is not even gRPC.
    for bytes in [vec![0x5a; 1 << 20], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), vec![0; 9]] {
        let mut socket = TcpStream::connect(&served.peer.control_addr).await.unwrap();
        let _ = socket.write_all(&bytes).await;
        drop(socket);
    }
    is_well(&served, TCP, 0).await;
}

#[tokio::test]
async fn the_newest_of_many_sessions_stays() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let mut askers = Vec::new();
        for _ in 0..100 {
            let (_, asker, path) = Asker::opened(&served, road, hello.clone()).await;
            askers.push((path, asker));
        }
        let (_path, mut newest) = askers.pop().unwrap();
        for (_, mut asker) in askers {
            assert!(asker.meets(&Then::CutOff).await);
        }
        newest.say(Said::Message(ping())).await;
        assert!(newest.meets(&Then::Told(|message| matches!(message, Message::Ping(_)))).await);
        drop((newest, _path));
        is_well(&served, road, 0).await;
    }
}

#[tokio::test]
async fn sockets_without_the_secret_get_nothing() {
    let road = TCP;
    let (served, hello) = prefill_node(road).await;
    let (welcome, mut asker) = Asker::welcomed(&served, hello).await;
    let right = socket_hello(&welcome);
    let flipped = |at: usize| {
        let mut bytes = right.clone();
        bytes[at] ^= 1;
        bytes
    };
    // Nothing; far too much; magic, session, secret, place and number wrong; all of it cut short.
    let last = right.len() - 1;
    let mut bad = vec![Vec::new(), vec![0xff; 1 << 20]];
    bad.extend([0, 4, 12, 43, 44, last].map(flipped));
    bad.extend([1, 4, 20, last].map(|length| right[..length].to_vec()));
    for bytes in &bad {
        let mut socket = TcpStream::connect(&welcome.paths[0].addr).await.unwrap();
        let _ = socket.write_all(bytes).await;
        assert!(matches!(timeout(PATIENT, socket.read_u8()).await, Ok(Err(_))), "taken, or kept open");
    }
    // More than may wait at once; the ones beyond are closed, the others in their time.
    let mut half_open = Vec::new();
    for _ in 0..200 {
        half_open.push(TcpStream::connect(&welcome.paths[0].addr).await.unwrap());
    }
    for mut socket in half_open {
        assert!(matches!(timeout(PATIENT, socket.read_u8()).await, Ok(Err(_))));
    }
    // And the session, whose socket never came, is over.
    assert!(asker.meets(&Then::CutOff).await);
    // Its secret opens nothing any more.
    let mut socket = TcpStream::connect(&welcome.paths[0].addr).await.unwrap();
    let _ = socket.write_all(&right).await;
    assert!(matches!(timeout(PATIENT, socket.read_u8()).await, Ok(Err(_))));
    is_well(&served, road, 0).await;
}

#[tokio::test]
async fn a_ring_is_for_whoever_knows_the_secret() {
    let road = SHM;
    let (served, hello) = prefill_node(road).await;
    let (welcome, mut asker) = Asker::welcomed(&served, hello.clone()).await;
    for at in [0, 31] {
        let mut secret = welcome.data_secret.to_vec();
        secret[at] ^= 1;
        let stranger = Welcome { data_secret: secret.into(), ..welcome.clone() };
        assert!(road.take(&stranger).await.is_err());
    }
    assert!(asker.meets(&Then::CutOff).await);
    assert!(road.take(&welcome).await.is_err(), "what is over has no ring");
    // A stranger before it does not keep the right one away.
    let (welcome, mut asker) = Asker::welcomed(&served, hello).await;
    let stranger = Welcome { data_secret: vec![0; 32].into(), ..welcome.clone() };
    assert!(road.take(&stranger).await.is_err());
    let path = road.take(&welcome).await.unwrap();
    for message in [chosen(road.name()), ping()] {
        asker.say(Said::Message(message)).await;
    }
    assert!(asker.meets(&Then::Told(|message| matches!(message, Message::Ping(_)))).await);
    drop((asker, path));
    is_well(&served, road, 0).await;
}

#[tokio::test]
async fn a_secret_is_good_for_one_path() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let (welcome, asker, path) = Asker::opened(&served, road, hello).await;
        assert!(road.take(&welcome).await.is_err(), "over {}", road.name());
        drop((asker, path));
        is_well(&served, road, 0).await;
    }
}
