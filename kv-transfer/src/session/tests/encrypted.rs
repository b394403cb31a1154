//! Sessions between nodes with certificates.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use baton_trust::{
    TlsConfig,
    authority::{Authority, Bearer},
};

use super::*;

fn authority() -> Authority {
    let now = SystemTime::now();
    Authority::new("test", now - Duration::from_secs(60)..now + Duration::from_secs(7200)).unwrap()
}

/// What a node of this role has.
fn trust(authority: &Authority, role: Role) -> Trust {
    trust_at(authority, role, "127.0.0.1")
}

/// What a node of this role has that is reached at `addr`.
fn trust_at(authority: &Authority, role: Role, addr: &str) -> Trust {
    let now = SystemTime::now();
    let valid = now - Duration::from_secs(60)..now + Duration::from_secs(3600);
    let issued = authority.issue(&Bearer::Nodes([role].into()), &[addr.to_owned()], valid).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| dir.path().join(name));
    fs::write(&ca, authority.itself().cert).unwrap();
    fs::write(&cert, issued.cert).unwrap();
    fs::write(&key, issued.key).unwrap();
    Trust::load(&TlsConfig { ca, cert, key, name: None }, "test", &[role].into()).unwrap()
}

fn certified(local: LocalNode, trust: Trust) -> LocalNode {
    LocalNode { trust, ..local }
}

fn tcp(tls: bool) -> TransferConfig {
    TransferConfig { tls, ..config(TransportKind::Tcp) }
}

/// A handoff's way to its end, or why there was none.
async fn try_handoff(served: &Served, sessions: &Sessions) -> Result<bool, HandoffError> {
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&served.peer, ask(1, TOKENS, 0), landing(&sink)).await?;
    let (_, end) = finish(&mut handoff).await;
    Ok(matches!(end, HandoffEvent::Ready { .. }) && sink.holds(0..TOKENS))
}

#[tokio::test]
pub async fn kv_arrives_whole_inside_tls() {
    let authority = authority();
    let (prefill, decode) = (trust(&authority, Role::Prefill), trust(&authority, Role::Decode));
    for (tls, transport) in [(true, EACH[1]), (false, EACH[1]), (true, EACH[0]), (true, EACH[2])] {
        let config = TransferConfig { tls, ..config(transport) };
        let local = certified(node("p", 1, 4), prefill.clone());
        let served = serve(local, config.clone(), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(certified(node("d", 2, 4), decode.clone()), config).unwrap();
        for _ in 0..3 {
            assert_eq!(try_handoff(&served, &sessions).await, Ok(true), "tls {tls}, {transport:?}");
        }
        assert!(sessions.reports().iter().any(|report| report.path.bandwidth() > Some(0.0)));
        sessions.shutdown().await;
        served.service.shutdown().await;
    }
}

#[tokio::test]
pub async fn only_nodes_of_the_cluster_with_kv_have_a_session() {
    let authority = authority();
    let local = certified(node("p", 1, 4), trust(&authority, Role::Prefill));
    let served = serve(local, tcp(false), engine(&SHAPE, false)).await;
    let dialled = async |trust: Trust| {
        let sessions = Sessions::new(certified(node("d", 2, 4), trust), tcp(false)).unwrap();
        try_handoff(&served, &sessions).await
    };
    assert_eq!(dialled(trust(&authority, Role::Decode)).await, Ok(true));
    for stranger in
        [Trust::none(), trust(&self::authority(), Role::Decode), trust(&authority, Role::Coordinator)]
    {
        let refused = dialled(stranger.clone()).await;
        assert!(
            matches!(refused, Err(HandoffError::Session(SessionError::Connect { .. }))),
            "{stranger:?}: {refused:?}"
        );
    }
    // And a decode node asks nobody but a prefill node.
    let local = certified(node("p", 1, 4), trust(&authority, Role::Decode));
    let other = serve(local, tcp(false), engine(&SHAPE, false)).await;
    let sessions =
        Sessions::new(certified(node("d", 2, 4), trust(&authority, Role::Decode)), tcp(false)).unwrap();
    let refused = format!("{:?}", try_handoff(&other, &sessions).await.unwrap_err());
    assert!(refused.contains("is not for prefill"), "{refused}");
}

#[tokio::test]
pub async fn kv_goes_back_to_a_prefill_node_inside_tls() {
    let authority = authority();
    let local = certified(node("d", 1, 4), trust(&authority, Role::Decode));
    let mut served = serve(local, tcp(true), engine(&SHAPE, false)).await;
    served.peer.role = Role::Decode;
    let local = certified(node("p", 2, 4), trust(&authority, Role::Prefill));
    let sessions = Sessions::new(local, tcp(true)).unwrap();
    assert_eq!(try_handoff(&served, &sessions).await, Ok(true));
}

#[tokio::test]
pub async fn both_sides_encrypt_or_none() {
    let authority = authority();
    let (prefill, decode) = (trust(&authority, Role::Prefill), trust(&authority, Role::Decode));
    for tls in [true, false] {
        let local = certified(node("p", 1, 4), prefill.clone());
        let served = serve(local, tcp(tls), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(certified(node("d", 2, 4), decode.clone()), tcp(!tls)).unwrap();
        let Err(HandoffError::Session(SessionError::Refused { field, mine, yours })) =
            try_handoff(&served, &sessions).await
        else {
            panic!("not refused")
        };
        let name = |tls| if tls { "tcp at tls" } else { "tcp" };
        assert_eq!((&*field, &*mine, &*yours), ("transport", name(!tls), name(tls)));
    }
    let refused = PrefillService::new(node("p", 1, 4), tcp(true), engine(&SHAPE, false)).err();
    assert_eq!(refused, Some(SessionError::NoCertificates));
    assert_eq!(Sessions::new(node("d", 2, 4), tcp(true)).err(), Some(SessionError::NoCertificates));
}

#[tokio::test]
pub async fn the_secret_is_not_heard_in_the_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let expected = tcp::listener::Expected::new(Some(trust(&authority(), Role::Prefill)));
    let mut tasks = JoinSet::new();
    tasks.spawn(tcp::listener::listen(listener, expected.clone(), Duration::from_millis(200)));
    let session = baton_protocol::SessionId(5);
    let mut expectation = expected.expect(session, [1; 32]);
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let hello = tcp::SocketHello { session, secret: [1; 32], index: 0, sockets: 1 }.encode();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &hello).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(PATIENT, socket.read_to_end(&mut said)).await.unwrap();
    // At most an alert.
    assert!(said.is_empty() || (said[0] == 21 && said.len() == 7), "{said:?}");
    assert!(timeout(Duration::from_millis(50), expectation.sockets()).await.is_err());
}

#[tokio::test]
pub async fn a_certificate_is_for_its_address() {
    let authority = authority();
    let local = certified(node("p", 1, 4), trust_at(&authority, Role::Prefill, "192.0.2.7"));
    let served = serve(local, tcp(false), engine(&SHAPE, false)).await;
    let decode = certified(node("d", 2, 4), trust(&authority, Role::Decode));
    let refused = try_handoff(&served, &Sessions::new(decode, tcp(false)).unwrap()).await;
    assert!(matches!(refused, Err(HandoffError::Session(SessionError::Connect { .. }))), "{refused:?}");
}

#[tokio::test]
pub async fn handshakes_that_are_never_made_are_in_nobodys_way() {
    let authority = authority();
    let local = certified(node("p", 1, 4), trust(&authority, Role::Prefill));
    let served = serve(local, tcp(false), engine(&SHAPE, false)).await;
    let mut mute = Vec::new();
    for _ in 0..300 {
        mute.push(TcpStream::connect(&served.peer.control_addr).await.unwrap());
    }
    let decode = certified(node("d", 2, 4), trust(&authority, Role::Decode));
    let sessions = Sessions::new(decode, tcp(false)).unwrap();
    // More than are let in at once: they are hung up on in their time, and whoever comes again is let in.
    let let_in = async { while try_handoff(&served, &sessions).await != Ok(true) {} };
    timeout(PATIENT, let_in).await.expect("strangers keep others away");
}
