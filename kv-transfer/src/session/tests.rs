//! Sessions over real loopback gRPC, with an engine that has everything in memory.

mod encrypted;
mod states;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use baton_protocol::{
    ErrorCode, HeadShare, Incarnation, KvDtype, KvShape, NodeId, Role, Token,
    wire::prefill_server::PrefillServer,
};
use baton_trust::{ReachError, Trust};
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;

use super::*;
use crate::{
    BusyReason, FaultsConfig, HandoffError, HandoffEvent, LocalNode, PrefillGuard, PrefillJob, Prefiller,
    Progress, SessionError, TransferConfig, TransportKind, Wanted,
    metrics::Outcome,
    testing::{Memory, SHAPE, Slot, ask},
    transport::{Checksum, offer, tcp},
};

const PATIENT: Duration = Duration::from_secs(30);
const TOKENS: u32 = 50;

/// Reports everything at once, or the first tokens only and then nothing more.
struct Engine {
    shape: KvShape,
    source: Arc<Memory>,
    stops_half_way: bool,
    busy: AtomicBool,
    running: Arc<AtomicUsize>,
    news: Mutex<JoinSet<()>>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Prefiller for Engine {
    fn start(&self, job: PrefillJob, progress: mpsc::Sender<Progress>) -> Result<PrefillGuard, BusyReason> {
        if self.busy.load(Ordering::SeqCst) {
            return Err(BusyReason { eta: Duration::from_millis(70), reason: "full".to_owned() });
        }
        let (source, end, layers) = (self.source.clone(), job.tokens(), self.shape.layers);
        let stop = if self.stops_half_way { 20 } else { end };
        let token = Token { choice: 0, position: 0, id: 9, logprob: None, top: Vec::new() };
        let mut script =
            vec![Progress::Started { cached_tokens: 5, queue: Duration::ZERO, source: source as Arc<_> }];
        let borders = [0, 5, 20, 37, end];
        for tokens in borders.windows(2).filter(|tokens| tokens[1] <= stop) {
            for group in [0..1, 1..layers] {
                script.push(Progress::Computed { layers: group, tokens: tokens[0]..tokens[1] });
            }
        }
        if !self.stops_half_way {
            script.push(Progress::Sampled { tokens: vec![token], prefill: Duration::from_millis(1) });
            script.push(Progress::Done);
        }
        let forever = self.stops_half_way;
        self.news.lock().spawn(async move {
            for news in script {
                if progress.send(news).await.is_err() {
                    return;
                }
            }
            if forever {
                progress.closed().await;
            }
        });
        self.running.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Guard(self.running.clone())))
    }
}

fn engine(shape: &KvShape, stops_half_way: bool) -> Arc<Engine> {
    Arc::new(Engine {
        shape: shape.clone(),
        source: Memory::computed(shape, 0..TOKENS),
        stops_half_way,
        busy: AtomicBool::new(false),
        running: Arc::default(),
        news: Mutex::default(),
    })
}

fn node(name: &str, incarnation: u64, page_tokens: u32) -> LocalNode {
    LocalNode {
        cluster: "test".to_owned(),
        node: name.into(),
        incarnation: Incarnation(incarnation),
        control_addr: "127.0.0.1:1".to_owned(),
        model_fingerprint: "f".to_owned(),
        kv: KvShape { page_tokens, ..SHAPE },
        trust: Trust::none(),
        heads: HeadShare::whole(SHAPE.kv_heads),
    }
}

fn config(transport: TransportKind) -> TransferConfig {
    TransferConfig {
        transport: Wanted::Only(transport),
        frame_bytes: 200,
        repair_timeout_ms: 50,
        probe_bytes: 10_000,
        ..TransferConfig::default()
    }
}

/// A prefill node, as long as its runtime lives.
struct Served {
    service: PrefillService,
    peer: PrefillPeer,
    engine: Arc<Engine>,
    _server: JoinSet<()>,
}

async fn serve(local: LocalNode, config: TransferConfig, engine: Arc<Engine>) -> Served {
    let peer_node = (local.node.clone(), local.incarnation);
    let trust = local.trust.clone();
    let service = PrefillService::new(local, config, engine.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_addr = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    let guarded = InterceptedService::new(PrefillServer::new(service.clone()), trust.guard(Role::Decode));
    let router = trust.server().unwrap().add_service(guarded);
    server.spawn(async move {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    let (node, incarnation) = peer_node;
    Served { service, peer: PrefillPeer { node, control_addr, incarnation }, engine, _server: server }
}

async fn next(handoff: &mut Handoff) -> HandoffEvent {
    timeout(PATIENT, handoff.next()).await.expect("an event").expect("not ended")
}

/// Reads to the end: names of the events, and the last one.
async fn finish(handoff: &mut Handoff) -> (Vec<&'static str>, HandoffEvent) {
    let mut names = Vec::new();
    loop {
        let event = next(handoff).await;
        names.push(match &event {
            HandoffEvent::Queued { .. } => "queued",
            HandoffEvent::Started { .. } => "started",
            HandoffEvent::First(_) => "first",
            HandoffEvent::Ready { .. } => "ready",
            HandoffEvent::Lost { .. } => "lost",
        });
        if matches!(event, HandoffEvent::Ready { .. } | HandoffEvent::Lost { .. }) {
            return (names, event);
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENT, polled).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn landing(sink: &Arc<Memory>) -> Box<Slot> {
    Box::new(Slot(Some(sink.clone())))
}

#[cfg(not(feature = "ucx"))]
const EACH: [TransportKind; 3] = [TransportKind::Inproc, TransportKind::Tcp, TransportKind::Shm];
#[cfg(feature = "ucx")]
const EACH: [TransportKind; 4] =
    [TransportKind::Inproc, TransportKind::Tcp, TransportKind::Shm, TransportKind::Ucx];

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
        let stale = PrefillPeer { incarnation: peer.incarnation, ..again.peer.clone() };
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
async fn nodes_that_do_not_fit_are_told_why() {
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
async fn every_path_is_measured_and_the_choice_is_told_to_both() {
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
    assert_eq!(served.service.reports()[0].path.tried, path.tried);
}

#[tokio::test]
async fn another_transport_is_taken_only_with_leave() {
    let served = serve(node("p", 1, 4), config(EACH[1]), engine(&SHAPE, false)).await;
    let allowed = TransferConfig { transport: Wanted::Only(EACH[0]), fallback: true, ..config(EACH[1]) };
    let sessions = Sessions::new(node("d", 2, 4), allowed).unwrap();
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&served.peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
    finish(&mut handoff).await;
    let path = &sessions.reports()[0].path;
    assert!(
        path.transport == EACH[1] && path.fallback().unwrap().starts_with("told to use inproc, uses tcp")
    );
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
async fn checksums_are_off_only_where_both_say_so() {
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
async fn nothing_beyond_this_machine() {
    let local = node("p", 1, 4);
    let open = TransferConfig { data_listen: "0.0.0.0:0".parse().unwrap(), ..config(EACH[1]) };
    let refused = PrefillService::new(local.clone(), open, engine(&SHAPE, false)).err();
    let addr = "0.0.0.0:0".parse().unwrap();
    assert_eq!(refused, Some(ReachError::NoCertificates { addr }.into()));
    let sessions = Sessions::new(local, config(EACH[1])).unwrap();
    for addr in ["192.0.2.1:80", "example.com:80", "localhost.example.com:80"] {
        let peer = PrefillPeer {
            node: NodeId::from("p"),
            control_addr: addr.to_owned(),
            incarnation: Incarnation(1),
        };
        let error = sessions.handoff(&peer, ask(0, 5, 0), Box::new(Slot(None))).await.err();
        let beyond = |addr| ReachError::NoCertificates { addr };
        let expected = addr.parse().map_or(ReachError::Malformed { addr: addr.to_owned() }, beyond);
        assert_eq!(error, Some(SessionError::from(expected).into()));
    }
}

#[tokio::test]
async fn data_sockets_need_the_secret() {
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
async fn asks_that_make_no_sense_are_not_sent() {
    let sessions = Sessions::new(node("d", 2, 4), config(EACH[1])).unwrap();
    let peer =
        PrefillPeer { node: "p".into(), control_addr: "127.0.0.1:1".into(), incarnation: Incarnation(1) };
    let error = sessions.handoff(&peer, ask(0, 8, 8), Box::new(Slot(None))).await.err();
    assert_eq!(error, Some(HandoffError::Ask { field: "have" }));
    let error = sessions.handoff(&peer, ask(0, 8, 0), Box::new(Slot(None))).await.err();
    assert!(matches!(error, Some(HandoffError::Session(SessionError::Connect { .. }))), "{error:?}");
}
