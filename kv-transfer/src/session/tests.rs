//! Sessions over real loopback gRPC, with an engine that has everything in memory.

mod encrypted;
mod handing;
mod opening;
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
    wire::{KvPath, prefill_server::PrefillServer},
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
use tonic::{service::interceptor::InterceptedService, transport::Server};

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
    peer: KvPeer,
    engine: Arc<Engine>,
    _server: JoinSet<()>,
}

async fn serve(local: LocalNode, config: TransferConfig, engine: Arc<Engine>) -> Served {
    let peer_node = (local.node.clone(), local.incarnation);
    let trust = local.trust.clone();
    let service = PrefillService::new(local, config, engine.clone()).unwrap();
    let listener = trust.gate().listen(([127, 0, 0, 1], 0).into()).unwrap();
    let control_addr = listener.local_addr().to_string();
    let mut server = JoinSet::new();
    let guarded = InterceptedService::new(
        PrefillServer::new(service.clone()),
        trust.guard(&[Role::Decode, Role::Prefill]),
    );
    let router = Server::builder().add_service(guarded);
    server.spawn(async move { router.serve_with_incoming(trust.callers(listener)).await.unwrap() });
    let (node, incarnation) = peer_node;
    Served {
        service,
        peer: KvPeer { node, control_addr, incarnation, role: Role::Prefill },
        engine,
        _server: server,
    }
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
