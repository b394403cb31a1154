//! The prefill node's service: takes sessions, runs their sending ends.

use std::{collections::HashMap, sync::Arc, time::Instant};

use baton_protocol::{
    NodeId, SessionId,
    wire::{self, Control, Hello, Welcome, control::Message, prefill_server::Prefill},
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::{
    connect::STREAM_MESSAGES,
    control::opening,
    hello::{Chosen, check_hello},
    listener::{Expectation, Expected, listen},
    running::{Running, tick, write},
    secret,
    sending::Sending,
};
use crate::{
    LocalNode, Prefiller, SessionError, TransferConfig, TransferMetrics, TransportKind,
    metrics::Side,
    transport::{FrameSender, Link, faulty, inproc, metered, tcp},
};

/// The sending side of all sessions of a node. Clones are the same service;
/// when the last one goes, its sessions end.
#[derive(Clone)]
pub struct PrefillService {
    service: Arc<Service>,
    _stop: Arc<DropGuard>,
}

struct Service {
    local: LocalNode,
    config: TransferConfig,
    metrics: TransferMetrics,
    prefiller: Arc<dyn Prefiller>,
    data_addr: String,
    expected: Expected,
    /// One session a peer; a newer one ends the older.
    peers: Mutex<HashMap<NodeId, (SessionId, CancellationToken)>>,
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

/// A data path that the receiver has not taken yet.
enum Pending {
    Inproc(Link<dyn FrameSender>),
    Tcp(Expectation),
}

/// What a session consists of before it runs.
struct Paths {
    pending: Pending,
    inbound: Streaming<Control>,
    outbound: Outbound,
    stop: CancellationToken,
}

type Outbound = mpsc::Sender<Result<Control, Status>>;

// === impl PrefillService ===

impl PrefillService {
    /// Listens for data sockets. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the configured address may not be listened on, or certificates are missing.
    pub fn new(
        local: LocalNode,
        config: TransferConfig,
        prefiller: Arc<dyn Prefiller>,
    ) -> Result<Self, SessionError> {
        if config.tls && !local.trust.is_certified() {
            return Err(SessionError::NoCertificates);
        }
        let listener = local.trust.gate().listen(config.data_listen)?;
        let data_addr = listener.local_addr().to_string();
        let expected = Expected::new(config.data_tls(&local.trust).cloned());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (sockets, limit, stopped) = (expected.clone(), config.handshake_timeout(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = listen(listener.into_inner(), sockets, limit) => {}
                () = stopped.cancelled() => {}
            }
        });
        let guard = Arc::new(stop.clone().drop_guard());
        let service = Arc::new(Service {
            local,
            config,
            metrics: TransferMetrics::new(Side::Sending),
            prefiller,
            data_addr,
            expected,
            peers: Mutex::default(),
            tasks: Mutex::new(tasks),
            stop,
        });
        Ok(Self { service, _stop: guard })
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &TransferMetrics {
        &self.service.metrics
    }

    /// Ends all sessions, and waits until their threads and tasks are gone. No
    /// session is taken any more.
    pub async fn shutdown(&self) {
        self.service.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.service.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }
}

#[tonic::async_trait]
impl Prefill for PrefillService {
    type SessionStream = ReceiverStream<Result<Control, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<Control>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let service = &self.service;
        let mut inbound = request.into_inner();
        let first = timeout(service.config.connect_timeout(), inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no HELLO"))??;
        let Some(Control { session: 0, number: 1, message: Some(Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("no HELLO"));
        };
        let (outbound, messages) = mpsc::channel(STREAM_MESSAGES);
        let greeting = match check_hello(&service.local, &service.config, &hello) {
            Err(refuse) => Message::Refuse(refuse),
            Ok(chosen) => Message::Welcome(service.take(&hello, chosen, inbound, &outbound)?),
        };
        // The channel is new and has room.
        outbound.try_send(Ok(opening(greeting))).map_err(|_| Status::internal("control stream closed"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

// === impl Service ===

impl Service {
    /// Makes a session of a HELLO that fits, and starts it.
    fn take(
        self: &Arc<Self>,
        hello: &Hello,
        chosen: Chosen,
        inbound: Streaming<Control>,
        outbound: &Outbound,
    ) -> Result<Welcome, Status> {
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("shutting down"));
        }
        let key = secret();
        let number = secret().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
        let session = SessionId(number.max(1));
        let (pending, data_addr) = match chosen.transport {
            TransportKind::Inproc => {
                let (addr, link) = inproc::listen();
                (Pending::Inproc(link), addr)
            }
            TransportKind::Tcp => (Pending::Tcp(self.expected.expect(session, key)), self.data_addr.clone()),
        };
        let (peer, stop) = (NodeId(hello.node.clone()), self.stop.child_token());
        if let Some((_, old)) = self.peers.lock().insert(peer.clone(), (session, stop.clone())) {
            old.cancel();
        }
        let paths = Paths { pending, inbound, outbound: outbound.clone(), stop };
        let service = self.clone();
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let ended = service.drive(session, peer.clone(), paths).await;
            tracing::debug!(%peer, %ended, "session is over");
            let mut peers = service.peers.lock();
            if peers.get(&peer).is_some_and(|(current, _)| *current == session) {
                peers.remove(&peer);
            }
        });
        Ok(Welcome {
            session: session.0,
            protocol: chosen.protocol,
            transport: chosen.transport.as_str().to_owned(),
            data_addr,
            data_secret: key.to_vec().into(),
            node: self.local.node.0.clone(),
            incarnation: self.local.incarnation.0,
            kv: Some(wire::KvShape::from(&self.local.kv)),
        })
    }

    /// Runs a session to its end; why it ended.
    async fn drive(&self, session: SessionId, peer: NodeId, paths: Paths) -> SessionError {
        let Paths { pending, mut inbound, outbound, stop } = paths;
        let opened = tokio::select! {
            opened = open_path(pending, &self.config) => opened,
            () = stop.cancelled() => Err(SessionError::down("closed here")),
        };
        let mut link = match opened {
            Ok(link) => link,
            Err(error) => return error,
        };
        if let Some(faults) = &self.config.faults {
            link = faulty::sender(link, faults.clone());
        }
        link = metered::sender(link, self.metrics.clone());
        let state =
            Sending::new(session, peer, self.local.clone(), self.config.clone(), self.metrics.clone());
        let path = Running::start(state.clone(), link.closer.clone(), move |state: &Sending| {
            state.send(&mut *link.end)
        });
        let mut running = match path {
            Ok(running) => running,
            Err(error) => return SessionError::down(format!("no data thread: {error}")),
        };
        let ended = tokio::select! {
            ended = read(&state, &mut inbound, &*self.prefiller) => ended,
            ended = write(&*state, &outbound, Ok) => ended,
            ended = tick(&*state, self.config.tick()) => ended,
            ended = running.broken() => ended,
            () = stop.cancelled() => SessionError::down("closed here"),
        };
        running.finish(ended.clone()).await;
        ended
    }
}

async fn open_path(pending: Pending, config: &TransferConfig) -> Result<Link<dyn FrameSender>, SessionError> {
    match pending {
        Pending::Inproc(link) => Ok(link),
        Pending::Tcp(mut expectation) => {
            let socket = timeout(config.handshake_timeout(), expectation.socket()).await;
            let socket = socket.ok().flatten().ok_or_else(|| SessionError::down("no data socket"))?;
            tcp::sender(socket, config.stall_timeout()).map_err(|error| SessionError::down(error.to_string()))
        }
    }
}

async fn read(
    state: &Arc<Sending>,
    inbound: &mut Streaming<Control>,
    prefiller: &dyn Prefiller,
) -> SessionError {
    let mut listeners = JoinSet::new();
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            Some(_) = listeners.join_next() => continue,
        };
        let taken = match message {
            Ok(Some(control)) => state.control(control, Instant::now()),
            Ok(None) => return SessionError::down("the decode node closed it"),
            Err(status) => return SessionError::down(format!("control stream: {}", status.message())),
        };
        match taken {
            Ok(Some(job)) => state.start(job, prefiller, &mut listeners),
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}
