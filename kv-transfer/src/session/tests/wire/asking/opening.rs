//! Bad decode nodes on their way to a session: greetings, choices, and strangers at its paths.

use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;
use crate::session::server::MAX_PEERS;

/// What is wrong with a HELLO.
type Change = fn(&mut Hello);

/// What a decode node says first on its only data socket.
fn socket_hello(welcome: &Welcome) -> Vec<u8> {
    let Terms { session, secret, .. } = terms(TCP, welcome);
    tcp::SocketHello { session, secret, index: 0, sockets: 1 }.encode().to_vec()
}

#[tokio::test]
pub async fn a_bad_choice_is_no_session() {
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
pub async fn who_wants_the_largest_probes_and_reads_none_is_cut_off() {
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
pub async fn a_bad_hello_is_refused_by_name() {
    let changes: [(&str, Change); 16] = [
        ("protocol", |hello| hello.protocol_min = 99),
        ("protocol", |hello| hello.protocol_max = 0),
        ("cluster", |hello| hello.cluster = "other".repeat(1000)),
        ("length of the node's name", |hello| hello.node = "n".repeat(254)),
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
pub async fn a_peer_that_speaks_the_next_version_too_is_met_in_ours() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let (newest, next) = (hello.protocol_max, Hello { protocol_max: hello.protocol_max + 1, ..hello });
        let (welcome, asker) = Asker::welcomed(&served, next).await;
        assert_eq!(welcome.protocol, newest, "over {}", road.name());
        drop(asker);
        is_well(&served, road, 0).await;
    }
}

#[tokio::test]
pub async fn no_hello_no_session() {
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
pub async fn the_newest_of_many_sessions_stays() {
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
pub async fn names_without_end_get_no_sessions() {
    let patient = TransferConfig { handshake_timeout_ms: 60_000, ..limits(TCP) };
    let served = serve(node("p", 1, 4), patient, engine(&SHAPE, false)).await;
    let hello = hello(&node("bad", 9, 4), &limits(TCP), &TCP.transports(), &served.peer);
    let mut client = PrefillClient::connect(format!("http://{}", served.peer.control_addr)).await.unwrap();
    let (mut kept, mut refused) = (Vec::new(), 0);
    for number in 0..MAX_PEERS + 100 {
        // A connection carries some hundred streams.
        if number % 100 == 0 {
            client = PrefillClient::connect(format!("http://{}", served.peer.control_addr)).await.unwrap();
        }
        let (up, messages) = mpsc::channel(1);
        up.send(opening(Message::Hello(Hello { node: format!("bad-{number}"), ..hello.clone() })))
            .await
            .unwrap();
        match client.session(ReceiverStream::new(messages)).await {
            Ok(welcome) => kept.push((up, welcome)),
            Err(status) => refused += usize::from(status.code() == tonic::Code::ResourceExhausted),
        }
    }
    assert_eq!((kept.len(), refused), (MAX_PEERS, 100));
    drop(kept);
    until("there is room again", || served.service.peers() == 0).await;
    is_well(&served, TCP, 0).await;
}

#[tokio::test]
pub async fn sockets_without_the_secret_get_nothing() {
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
pub async fn a_ring_is_for_whoever_knows_the_secret() {
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
pub async fn a_secret_is_good_for_one_path() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let (welcome, asker, path) = Asker::opened(&served, road, hello).await;
        assert!(road.take(&welcome).await.is_err(), "over {}", road.name());
        drop((asker, path));
        is_well(&served, road, 0).await;
    }
}

#[tokio::test]
pub async fn a_recorded_session_opens_nothing() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        let (welcome, mut asker, path) = Asker::opened(&served, road, hello.clone()).await;
        let mut said =
            vec![Control { session: welcome.session, number: 2, message: Some(chosen(road.name())) }];
        for (number, message) in (3..).zip([prefill(|_| {}), credit(9)]) {
            said.push(Control { session: welcome.session, number, message: Some(message.clone()) });
            asker.say(Said::Message(message)).await;
        }
        assert!(asker.meets(&Then::Told(|message| matches!(message, Message::Start(_)))).await);
        drop((asker, path));
        let (_, mut again) = Asker::welcomed(&served, hello).await;
        for control in said {
            // As it was: the number of the old session.
            let _ = again.up.send(control).await;
        }
        assert!(again.meets(&Then::CutOff).await, "over {}", road.name());
        assert!(road.take(&welcome).await.is_err(), "the old path over {}", road.name());
        drop(again);
        is_well(&served, road, 0).await;
    }
}

/// Writes a byte of `secret` every tenth of a second until it is hung up on; how many were taken.
async fn drip(mut socket: impl AsyncRead + AsyncWrite + Unpin, secret: &[u8]) -> usize {
    for (at, byte) in secret.iter().enumerate() {
        let mut answer = [0];
        let written = socket.write_all(&[*byte]).await;
        match timeout(Duration::from_millis(100), socket.read(&mut answer)).await {
            Err(_) if written.is_ok() => {}
            _ => return at,
        }
    }
    secret.len()
}

#[tokio::test]
pub async fn who_tells_the_secret_too_slowly_is_hung_up_on() {
    let (served, hello) = prefill_node(TCP).await;
    let (welcome, _asker) = Asker::welcomed(&served, hello).await;
    let socket = TcpStream::connect(&welcome.paths[0].addr).await.unwrap();
    let right = socket_hello(&welcome);
    assert!(drip(socket, &right).await < right.len());
    is_well(&served, TCP, 0).await;

    let (served, hello) = prefill_node(SHM).await;
    let (welcome, _asker) = Asker::welcomed(&served, hello).await;
    let addr = SocketAddr::from_abstract_name(&welcome.paths[0].addr).unwrap();
    let stream = std::os::unix::net::UnixStream::connect_addr(&addr).unwrap();
    stream.set_nonblocking(true).unwrap();
    assert!(drip(tokio::net::UnixStream::from_std(stream).unwrap(), &welcome.data_secret).await < 32);
    is_well(&served, SHM, 0).await;
}

#[tokio::test]
pub async fn who_says_nothing_on_the_control_port_is_in_nobodys_way() {
    let (served, _) = prefill_node(TCP).await;
    let mut mute = Vec::new();
    for _ in 0..1_000 {
        mute.push(TcpStream::connect(&served.peer.control_addr).await.unwrap());
    }
    is_well(&served, TCP, 0).await;
}

#[tokio::test]
pub async fn who_says_nothing_on_the_data_port_is_in_nobodys_way() {
    let (served, hello) = prefill_node(TCP).await;
    let (welcome, _asker) = Asker::welcomed(&served, hello).await;
    let mut mute = Vec::new();
    for leg in 0..3 {
        for _ in 0..100 {
            mute.push(TcpStream::connect(&welcome.paths[0].addr).await.unwrap());
        }
        is_well(&served, TCP, leg).await;
    }
}

/// A gRPC call of `session` by hand: preface, SETTINGS, HEADERS without compression, then `body` as DATA.
fn raw_call(body: &[u8]) -> Vec<u8> {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/baton.Prefill/Session"),
        (":authority", "here"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let block: Vec<u8> =
        headers.iter().flat_map(|(name, value)| [vec![0], literal(name), literal(value)].concat()).collect();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 0, 1, body),
    ]
    .concat()
}

#[tokio::test]
pub async fn lengths_of_control_messages_are_not_believed() {
    let (served, hello) = prefill_node(TCP).await;
    let hello = opening(Message::Hello(hello)).encode_to_vec();
    let message = |flag: u8, length: u32| [&[flag], &length.to_be_bytes()[..], &hello].concat();
    let right = hello.len() as u32;
    let mut bodies = vec![
        message(0, 0),
        message(0, u32::MAX),
        message(0, right - 1),
        message(0, right + 1),
        // Compressed, says the flag; and no flag at all.
        message(1, right),
        message(9, right),
    ];
    // Cut short at each byte.
    bodies.extend((0..hello.len() + 5).map(|length| message(0, right)[..length].to_vec()));
    for body in bodies {
        let mut socket = TcpStream::connect(&served.peer.control_addr).await.unwrap();
        socket.write_all(&raw_call(&body)).await.unwrap();
        drop(socket);
    }
    is_well(&served, TCP, 0).await;
}

#[cfg(feature = "ucx")]
#[tokio::test]
pub async fn strangers_at_the_ports_of_ucx_get_nothing() {
    let road = ROADS[3];
    let (served, hello) = prefill_node(road).await;
    let before = listening_ports();
    let (welcome, asker) = Asker::welcomed(&served, hello).await;
    // Others listen too meanwhile; the address has its port in it.
    let address = &welcome.paths[0].addr;
    let is_in = |port: &u16| {
        [port.to_be_bytes(), port.to_le_bytes()].iter().any(|bytes| address.contains(&crate::hex(bytes)))
    };
    let ports: Vec<u16> = listening_ports().difference(&before).copied().filter(is_in).collect();
    assert!(!ports.is_empty(), "UCX listens nowhere");
    for port in ports {
        for bytes in [vec![0x5a; 1 << 20], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Vec::new()] {
            let mut socket = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let _ = socket.write_all(&bytes).await;
        }
    }
    let path = road.take(&welcome).await.unwrap();
    drop((asker, path));
    is_well(&served, road, 0).await;
}

/// Where anybody in this network namespace listens for TCP.
#[cfg(feature = "ucx")]
fn listening_ports() -> std::collections::HashSet<u16> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state) = (words.next()?, words.next()?, words.next()?);
        (state == "0A").then(|| u16::from_str_radix(local.split(':').nth(1)?, 16).ok())?
    };
    table.lines().skip(1).filter_map(port).collect()
}
