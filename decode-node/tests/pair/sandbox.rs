//! Prefill nodes and a decode node in one process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use baton_decode_node::{DecodeConfig, DecodeNode};
use baton_engine::{
    ChoiceSpec, Engine, EngineConfig, EngineHandle, EngineWorker, Goal, SequenceEvent, SequenceSpec,
    StartFrom,
    backend::mock::{EOS_TOKEN, MockBackend, MockConfig},
};
use baton_kv_transfer::{
    FaultsConfig, LocalNode, PrefillService, Sessions, TransferConfig, TransportKind, Wanted,
};
use baton_prefill_node::{PrefillConfig, PrefillNode, Returns};
use baton_protocol::{
    HeadShare, Incarnation, NodeId, Request,
    wire::{
        PrefillCandidate, decode_client::DecodeClient, decode_server::DecodeServer,
        prefill_server::PrefillServer,
    },
};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server, server::Router};
use tracing_subscriber::EnvFilter;

use crate::call::{Answer, Choice, PATIENCE};

/// What a test may want to be different.
#[derive(Clone)]
pub struct Settings {
    pub prefills: usize,
    pub prefill_page_tokens: u32,
    pub decode_page_tokens: u32,
    pub prefill_pages: usize,
    pub decode_pages: usize,
    pub context_tokens: usize,
    pub max_batch_tokens: usize,
    pub mock: MockConfig,
    pub prefill: PrefillConfig,
    pub decode: DecodeConfig,
    pub transfer: TransferConfig,
    /// Disturbs the frames of the first prefill node only.
    pub faults_of_first: Option<FaultsConfig>,
}

pub struct Sandbox {
    pub prefills: Vec<PrefillRoom>,
    pub decode: DecodeRoom,
    settings: Settings,
}

pub struct PrefillRoom {
    pub id: NodeId,
    pub engine: EngineHandle,
    pub node: Arc<PrefillNode>,
    service: PrefillService,
    pub sessions: Arc<Sessions>,
    addr: SocketAddr,
    server: JoinSet<()>,
    _worker: EngineWorker,
}

pub struct DecodeRoom {
    pub engine: EngineHandle,
    pub node: DecodeNode,
    sessions: Arc<Sessions>,
    /// Sends KV back.
    pub returning: PrefillService,
    client: DecodeClient<Channel>,
    _server: JoinSet<()>,
    _worker: EngineWorker,
}

/// Printable tokens, the same for the same seed.
pub fn prompt(seed: u64, tokens: usize) -> Vec<u32> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        32 + (word % 95) as u32
    };
    (0..tokens).map(|_| next()).collect()
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefills: 1,
            prefill_page_tokens: 16,
            decode_page_tokens: 16,
            prefill_pages: 256,
            decode_pages: 256,
            context_tokens: 4096,
            max_batch_tokens: 64,
            mock: MockConfig::default(),
            prefill: PrefillConfig::default(),
            decode: DecodeConfig::default(),
            // Small frames, so that a short prompt is many of them.
            transfer: TransferConfig {
                transport: Wanted::Only(TransportKind::Tcp),
                frame_bytes: 2048,
                probe_bytes: 0,
                repair_timeout_ms: 50,
                ..TransferConfig::default()
            },
            faults_of_first: None,
        }
    }
}

impl Settings {
    fn engine(&self, pages: usize, page_tokens: u32) -> (EngineWorker, EngineHandle) {
        let mut config = EngineConfig::new(pages, self.context_tokens);
        config.eos_tokens = vec![EOS_TOKEN];
        config.scheduler.max_batch_tokens = self.max_batch_tokens;
        EngineWorker::start(
            Engine::new(Box::new(MockBackend::new(self.mock.clone(), page_tokens)), config).unwrap(),
        )
    }
}

// === impl Sandbox ===

impl Sandbox {
    pub async fn start(settings: Settings) -> Self {
        // Shown when a test fails, more of it with RUST_LOG=debug. Other tests of the process may have set it already.
        // Of ten thousand handoffs everything would fill the memory that a soak counts.
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter(filter).try_init();
        let mut prefills = Vec::new();
        for index in 0..settings.prefills {
            let mut settings = settings.clone();
            if index == 0 && settings.faults_of_first.is_some() {
                settings.transfer.faults = settings.faults_of_first.take();
            }
            prefills.push(PrefillRoom::start(&settings, &format!("prefill-{}", index + 1)).await);
        }
        Self { prefills, decode: DecodeRoom::start(&settings).await, settings }
    }

    /// All prefill nodes, in order.
    pub fn candidates(&self) -> Vec<PrefillCandidate> {
        self.prefills.iter().map(PrefillRoom::candidate).collect()
    }

    /// Bytes of one token's KV.
    pub fn token_bytes(&self) -> u64 {
        self.decode.engine.pool().shape().token_bytes() as u64
    }

    /// The answer of an engine of its own, with no node around it.
    pub async fn local(&self, request: &Request) -> Answer {
        let (_worker, engine) = self.settings.engine(4096, self.settings.decode_page_tokens);
        let choices =
            (0..request.choices).map(|choice| ChoiceSpec { choice, generated: Vec::new() }).collect();
        let spec = SequenceSpec {
            request: request.id,
            tenant: request.tenant.clone(),
            tokens: request.tokens.clone().into(),
            prompt_tokens: request.tokens.len(),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            logprobs: request.logprobs,
            top_logprobs: request.top_logprobs,
            prompt_logprobs: request.prompt_logprobs,
            goal: Goal::Generate { choices },
            start: StartFrom::Cold,
            deadline: None,
            itl: None,
        };
        let mut events = engine.submit(spec).unwrap();
        let mut answer =
            Answer { choices: vec![Choice::default(); request.choices as usize], ..Answer::default() };
        while let Some(event) = events.recv().await {
            match event {
                SequenceEvent::Prompt(part) => answer.prompt.extend(part.tokens),
                SequenceEvent::Token(token) => answer.choices[token.choice as usize].push(token),
                SequenceEvent::Finished { choice, reason } => {
                    answer.choices[choice as usize].end = Some(reason);
                }
                SequenceEvent::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
        answer
    }

    /// Waits until every page of every node is free or cached, and checks the books.
    pub async fn settles(&self) {
        let engines = self.prefills.iter().map(|prefill| &prefill.engine).chain([&self.decode.engine]);
        for engine in engines {
            let idle = async {
                while !engine.pool().counts().is_idle() {
                    assert!(engine.pool().counts().sums_to_total());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let settled = timeout(PATIENCE, idle).await;
            assert!(settled.is_ok(), "pages are still held: {:?}", engine.pool().counts());
            engine.pool().check_integrity().unwrap();
        }
    }
}

// === impl PrefillRoom ===

impl PrefillRoom {
    async fn start(settings: &Settings, name: &str) -> Self {
        let (worker, engine) = settings.engine(settings.prefill_pages, settings.prefill_page_tokens);
        let (listener, addr) = listen().await;
        let local = local_node(name, addr, &engine);
        let (node, service, sessions) = ends(settings, &local, &engine);
        let router = Server::builder().add_service(PrefillServer::new(service.clone()));
        let server = serve(router, listener);
        Self { id: NodeId::from(name), engine, node, service, sessions, addr, server, _worker: worker }
    }

    pub fn candidate(&self) -> PrefillCandidate {
        PrefillCandidate { node: self.id.0.clone(), control_addr: self.addr.to_string(), incarnation: 1 }
    }

    /// Ends all its sessions and stops listening, whatever is under way.
    pub async fn kill(&mut self) {
        self.server.abort_all();
        self.sessions.shutdown().await;
        self.service.shutdown().await;
    }
}

// === impl DecodeRoom ===

impl DecodeRoom {
    async fn start(settings: &Settings) -> Self {
        let (worker, engine) = settings.engine(settings.decode_pages, settings.decode_page_tokens);
        let (listener, addr) = listen().await;
        let local = local_node("decode-1", addr, &engine);
        let (_, returning, sessions) = ends(settings, &local, &engine);
        let node = DecodeNode::new(engine.clone(), Arc::clone(&sessions), settings.decode.clone());
        let service: DecodeServer<_> = node.service();
        let router =
            Server::builder().add_service(service).add_service(PrefillServer::new(returning.clone()));
        let server = serve(router, listener);
        let client = DecodeClient::connect(format!("http://{addr}")).await.unwrap();
        Self { engine, node, sessions, returning, client, _server: server, _worker: worker }
    }

    pub fn client(&self) -> DecodeClient<Channel> {
        self.client.clone()
    }

    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
}

/// A node's sending end, and its sessions to other nodes' sending ends.
fn ends(
    settings: &Settings,
    local: &LocalNode,
    engine: &EngineHandle,
) -> (Arc<PrefillNode>, PrefillService, Arc<Sessions>) {
    let transfer = &settings.transfer;
    let sessions = Arc::new(Sessions::new(local.clone(), transfer.clone()).unwrap());
    let returns = Returns::new(engine, &sessions, transfer.return_bytes_per_second);
    let node = PrefillNode::new(engine.clone(), Arc::clone(&sessions), &settings.prefill, returns);
    let service = PrefillService::new(local.clone(), transfer.clone(), Arc::clone(&node) as Arc<_>).unwrap();
    (node, service, sessions)
}

fn local_node(name: &str, addr: SocketAddr, engine: &EngineHandle) -> LocalNode {
    LocalNode {
        cluster: "test".to_owned(),
        node: NodeId::from(name),
        incarnation: Incarnation(1),
        control_addr: addr.to_string(),
        model_fingerprint: "mock".to_owned(),
        kv: engine.pool().shape().clone(),
        trust: Default::default(),
        heads: HeadShare::whole(engine.pool().shape().kv_heads),
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn serve(router: Router, listener: TcpListener) -> JoinSet<()> {
    let mut server = JoinSet::new();
    server.spawn(async move { router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
    server
}
