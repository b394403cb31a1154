//! A node that does what its script says.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use baton_protocol::{
    Event, NodeInfo, NodeState, Role,
    wire::{
        DescribeRequest, DrainRequest, ForgetRequest, GenerateDown, GenerateUp, LoadReport, LoadRequest,
        ModelTextChunk, ModelTextRequest, NodeDescription, Open, PrefixChanges, PrefixesRequest,
        RolesRequest,
        decode_server::{Decode, DecodeServer},
        generate_up::Message,
        node_server::{Node, NodeServer},
    },
};
use baton_trust::Trust;
use futures::{Stream, StreamExt, future, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// What every fake node serves as its model's text.
pub(super) const TEXT: &[u8] = b"a tokenizer and a template";

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One step of a scripted stream.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Send(Event),
    /// Breaks the stream as a dying process does.
    Break,
    /// Says nothing more until the stream is dropped.
    Hang,
    /// Goes on when the reader has stopped this choice.
    AwaitStop(u32),
    /// Goes on when told to.
    AwaitGo,
}

pub(super) struct FakeNode {
    state: Arc<State>,
    _server: JoinSet<()>,
}

struct State {
    info: Mutex<NodeInfo>,
    scripts: Mutex<VecDeque<Vec<Act>>>,
    opens: Mutex<Vec<Open>>,
    prefixes: Mutex<VecDeque<Vec<PrefixChanges>>>,
    /// The numbers after which changes of its cache were asked for.
    asked_after: Mutex<Vec<u64>>,
    /// The stream of these changes is cut.
    cut: Notify,
    /// Whether Describe hangs, as in a stopped process.
    silent: AtomicBool,
    /// How often it was asked who it is.
    described: AtomicUsize,
    go: watch::Sender<bool>,
    /// What it says of its load, first and again and again once told to.
    load: Mutex<LoadReport>,
    /// Whether load reports come without end.
    reports: watch::Sender<bool>,
    /// How often it forgot its prefixes.
    forgot: AtomicUsize,
    /// Streams that have ended, whoever ended them.
    ended: watch::Sender<usize>,
}

/// What a scripted stream carries from step to step; its drop is the stream's end.
struct Stage {
    acts: std::vec::IntoIter<Act>,
    up: Streaming<GenerateUp>,
    state: Arc<State>,
}

struct Service(Arc<State>);

impl FakeNode {
    pub(super) async fn start(info: NodeInfo) -> Self {
        Self::certified(info, &Trust::none()).await
    }

    /// As [`start`](Self::start), over the node's own certificates.
    pub(super) async fn certified(info: NodeInfo, trust: &Trust) -> Self {
        let listener = trust.gate().listen(([127, 0, 0, 1], 0).into()).unwrap();
        let info = NodeInfo { control_addr: listener.local_addr().to_string(), ..info };
        let state = Arc::new(State {
            info: Mutex::new(info),
            scripts: Mutex::default(),
            opens: Mutex::default(),
            prefixes: Mutex::default(),
            asked_after: Mutex::default(),
            cut: Notify::new(),
            silent: AtomicBool::new(false),
            described: AtomicUsize::new(0),
            go: watch::Sender::new(false),
            load: Mutex::new(LoadReport { running_sequences: 3, ..LoadReport::default() }),
            reports: watch::Sender::new(false),
            forgot: AtomicUsize::new(0),
            ended: watch::Sender::new(0),
        });
        let server = Server::builder()
            .add_service(DecodeServer::new(Service(Arc::clone(&state))))
            .add_service(NodeServer::new(Service(Arc::clone(&state))))
            .serve_with_incoming(trust.callers(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { server.await.unwrap() });
        Self { state, _server: tasks }
    }

    pub(super) fn info(&self) -> NodeInfo {
        self.state.info.lock().clone()
    }

    pub(super) fn set_info(&self, info: NodeInfo) {
        *self.state.info.lock() = info;
    }

    /// What the next stream does that no earlier script is for.
    pub(super) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.scripts.lock().push_back(acts.into_iter().collect());
    }

    pub(super) fn opens(&self) -> Vec<Open> {
        self.state.opens.lock().clone()
    }

    /// What the next stream of changes says that no earlier script is for.
    pub(super) fn script_prefixes(&self, parts: Vec<PrefixChanges>) {
        self.state.prefixes.lock().push_back(parts);
    }

    pub(super) fn forgot(&self) -> usize {
        self.state.forgot.load(Ordering::SeqCst)
    }

    pub(super) fn asked_after(&self) -> Vec<u64> {
        self.state.asked_after.lock().clone()
    }

    /// Breaks the stream of changes of its cache.
    pub(super) fn cut_prefixes(&self) {
        self.state.cut.notify_one();
    }

    pub(super) fn set_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
    }

    pub(super) fn described(&self) -> usize {
        self.state.described.load(Ordering::SeqCst)
    }

    /// Says so of its load from now on.
    pub(super) fn set_load(&self, load: LoadReport) {
        *self.state.load.lock() = load;
        self.report_often();
    }

    pub(super) fn report_often(&self) {
        self.state.reports.send_replace(true);
    }

    pub(super) fn go(&self) {
        self.state.go.send_replace(true);
    }

    /// Waits until this many streams have ended.
    pub(super) async fn ended(&self, streams: usize) {
        self.state.ended.subscribe().wait_for(|ended| *ended == streams).await.unwrap();
    }
}

impl State {
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.state.ended.send_modify(|ended| *ended += 1);
    }
}

impl Stage {
    async fn next(&mut self) -> Option<Result<GenerateDown, Status>> {
        loop {
            match self.acts.next()? {
                Act::Send(event) => return Some(Ok(event.into())),
                Act::Break => return Some(Err(Status::unavailable("broken on purpose"))),
                Act::Hang => future::pending().await,
                Act::AwaitStop(choice) => match self.up.next().await {
                    Some(Ok(GenerateUp { message: Some(Message::StopChoice(stop)) })) => {
                        assert_eq!(stop.choice, choice);
                    }
                    other => return Some(Err(Status::internal(format!("expected a stop, got {other:?}")))),
                },
                Act::AwaitGo => {
                    self.state.go.subscribe().wait_for(|go| *go).await.unwrap();
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Decode for Service {
    type GenerateStream = Down<GenerateDown>;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateUp>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut up = request.into_inner();
        let Some(GenerateUp { message: Some(Message::Open(open)) }) = up.message().await? else {
            return Err(Status::invalid_argument("no open"));
        };
        self.0.opens.lock().push(open);
        let script = self.0.scripts.lock().pop_front();
        let acts = script.ok_or(Status::internal("a stream too many"))?.into_iter();
        let stage = Stage { acts, up, state: Arc::clone(&self.0) };
        let down = stream::unfold(stage, async |mut stage| stage.next().await.map(|item| (item, stage)));
        Ok(Response::new(Box::pin(down)))
    }
}

#[tonic::async_trait]
impl Node for Service {
    type LoadStream = Down<LoadReport>;
    type PrefixesStream = Down<PrefixChanges>;
    type ModelTextStream = Down<ModelTextChunk>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<NodeDescription>, Status> {
        if self.0.is_silent() {
            future::pending::<()>().await;
        }
        self.0.described.fetch_add(1, Ordering::SeqCst);
        let info_json = serde_json::to_string(&*self.0.info.lock()).unwrap();
        Ok(Response::new(NodeDescription { info_json }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<NodeDescription>, Status> {
        let state = if request.into_inner().drain { NodeState::Draining } else { NodeState::Ready };
        self.0.info.lock().state = state;
        self.describe(Request::new(DescribeRequest {})).await
    }

    async fn set_roles(&self, request: Request<RolesRequest>) -> Result<Response<NodeDescription>, Status> {
        let RolesRequest { epoch, roles, .. } = request.into_inner();
        {
            let mut info = self.0.info.lock();
            if info.epoch != epoch {
                return Err(Status::failed_precondition("another epoch"));
            }
            info.roles = roles.iter().map(|role| role.parse::<Role>().unwrap()).collect();
            info.epoch += 1;
        }
        self.describe(Request::new(DescribeRequest {})).await
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<NodeDescription>, Status> {
        if self.0.info.lock().incarnation.0 != request.into_inner().incarnation {
            return Err(Status::failed_precondition("another"));
        }
        self.0.forgot.fetch_add(1, Ordering::SeqCst);
        self.describe(Request::new(DescribeRequest {})).await
    }

    async fn load(&self, _: Request<LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let first = self.0.load.lock().clone();
        let state = Arc::clone(&self.0);
        let rest = stream::unfold((self.0.reports.subscribe(), state), async |(mut often, state)| {
            often.wait_for(|often| *often).await.ok()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let load = state.load.lock().clone();
            Some((Ok(load), (often, state)))
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(rest))))
    }

    async fn prefixes(
        &self,
        request: Request<PrefixesRequest>,
    ) -> Result<Response<Self::PrefixesStream>, Status> {
        self.0.asked_after.lock().push(request.into_inner().after);
        let parts = self.0.prefixes.lock().pop_front().unwrap_or_default();
        let state = Arc::clone(&self.0);
        let end = stream::once(async move {
            state.cut.notified().await;
            Err(Status::unavailable("cut on purpose"))
        });
        Ok(Response::new(Box::pin(stream::iter(parts.into_iter().map(Ok)).chain(end))))
    }

    async fn model_text(
        &self,
        _: Request<ModelTextRequest>,
    ) -> Result<Response<Self::ModelTextStream>, Status> {
        let chunk = |data: &'static [u8]| Ok(ModelTextChunk { data: data.into() });
        Ok(Response::new(Box::pin(stream::iter(TEXT.chunks(5).map(chunk)))))
    }
}
