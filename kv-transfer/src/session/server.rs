//! The prefill node's service: takes sessions, runs their sending ends.

use std::{collections::HashMap, sync::Arc, time::Instant};

use baton_protocol::{
    Incarnation, NodeId, SessionId,
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
    hello::{Agreed, check_hello},
    paths,
    running::{Running, tick, write},
    secret,
    sending::{Call, Receiver, Sending},
};
use crate::{
    LocalNode, PathReport, Prefiller, SessionError, TransferConfig, TransferMetrics, Wanted,
    metrics::Side,
    transport::{
        MAX_FRAME_BYTES, faulty, metered,
        offer::{Listening, Terms, Transports},
    },
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
    transports: Transports,
    /// One session a peer; a newer one ends the older.
    peers: Mutex<HashMap<NodeId, (SessionId, CancellationToken)>>,
    /// Paths of sessions that have chosen one.
    open: Mutex<HashMap<SessionId, PathReport>>,
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

/// Decode nodes that may have a session at once: each says its own name.
pub(super) const MAX_PEERS: usize = 1024;

/// What a session consists of before it runs.
struct Opening {
    /// What this node and the other were told to use.
    wanted: [Wanted; 2],
    terms: Terms,
    listening: Vec<Listening>,
    probe_bytes: u32,
    inbound: Streaming<Control>,
    outbound: Outbound,
    stop: CancellationToken,
}

type Outbound = mpsc::Sender<Result<Control, Status>>;

// === impl PrefillService ===

impl PrefillService {
    /// Gets its transports ready. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the config names a transport that is not in this build, an address
    /// that may not be listened on, or certificates that are missing.
    pub fn new(
        local: LocalNode,
        config: TransferConfig,
        prefiller: Arc<dyn Prefiller>,
    ) -> Result<Self, SessionError> {
        let stop = CancellationToken::new();
        let guard = Arc::new(stop.clone().drop_guard());
        let service = Arc::new(Service {
            transports: Transports::new(&config, &local.trust, Side::Sending)?,
            local,
            config,
            metrics: TransferMetrics::new(Side::Sending),
            prefiller,
            peers: Mutex::default(),
            open: Mutex::default(),
            tasks: Mutex::default(),
            stop,
        });
        Ok(Self { service, _stop: guard })
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &TransferMetrics {
        &self.service.metrics
    }

    /// How the data of open sessions travels.
    pub fn paths(&self) -> Vec<PathReport> {
        self.service.open.lock().values().cloned().collect()
    }

    /// Decode nodes that have a session, or are getting one.
    #[cfg(test)]
    pub fn peers(&self) -> usize {
        self.service.peers.lock().len()
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
        let greeting = match check_hello(&service.local, &service.config, &service.transports, &hello) {
            Err(refuse) => Message::Refuse(refuse),
            Ok(agreed) => Message::Welcome(service.take(&hello, &agreed, inbound, &outbound).await?),
        };
        // The channel is new and has room.
        outbound.try_send(Ok(opening(greeting))).map_err(|_| Status::internal("control stream closed"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

// === impl Service ===

impl Service {
    /// Makes a session of a HELLO that fits, and starts it.
    async fn take(
        self: &Arc<Self>,
        hello: &Hello,
        agreed: &Agreed,
        inbound: Streaming<Control>,
        outbound: &Outbound,
    ) -> Result<Welcome, Status> {
        let key = secret();
        let number = secret().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
        let session = SessionId(number.max(1));
        let terms = Terms { session, secret: key, checksum: agreed.checksum, config: self.config.clone() };
        let (paths, listening) = self.transports.listen(&agreed.transports, &terms).await;
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("shutting down"));
        }
        // What the other side asks for, within what this side allows.
        let probe_bytes = hello.probe_bytes.min(MAX_FRAME_BYTES);
        let (peer, stop) = (NodeId(hello.node.clone()), self.stop.child_token());
        let mut peers = self.peers.lock();
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            return Err(Status::resource_exhausted("too many decode nodes"));
        }
        if let Some((_, old)) = peers.insert(peer.clone(), (session, stop.clone())) {
            old.cancel();
        }
        drop(peers);
        let receiver = Receiver {
            node: peer.clone(),
            incarnation: Incarnation(hello.incarnation),
            heads: agreed.heads.clone(),
        };
        let outbound = outbound.clone();
        let wanted = [self.transports.wanted(), paths::told(&hello.transport)];
        let opening = Opening { wanted, terms, listening, probe_bytes, inbound, outbound, stop };
        let service = self.clone();
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let ended = service.drive(receiver, opening).await;
            tracing::debug!(%peer, %ended, "session is over");
            service.open.lock().remove(&session);
            let mut peers = service.peers.lock();
            if peers.get(&peer).is_some_and(|(current, _)| *current == session) {
                peers.remove(&peer);
            }
        });
        Ok(Welcome {
            session: session.0,
            protocol: agreed.protocol,
            data_secret: key.to_vec().into(),
            node: self.local.node.0.clone(),
            incarnation: self.local.incarnation.0,
            kv: Some(wire::KvShape::from(&self.local.kv)),
            paths,
            transport: self.transports.wanted().as_str().to_owned(),
            checksum: agreed.checksum.as_str().to_owned(),
        })
    }

    /// Runs a session to its end; why it ended.
    async fn drive(&self, peer: Receiver, opening: Opening) -> SessionError {
        let Opening { wanted, terms, listening, probe_bytes, mut inbound, outbound, stop } = opening;
        let opened = tokio::select! {
            opened = paths::accept(listening, &terms, probe_bytes, wanted, &mut inbound) => opened,
            () = stop.cancelled() => Err(SessionError::down("closed here")),
        };
        let (mut link, path, inbox) = match opened {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        if let Some(faults) = &self.config.faults {
            link = faulty::sender(link, terms.checksum, faults.clone());
        }
        link = metered::sender(link, self.metrics.clone());
        self.open.lock().insert(terms.session, path.clone());
        let state = Sending::new(&terms, (peer, self.local.clone()), path, inbox, self.metrics.clone());
        let asked = link.end.asked_every();
        let mut running = match Running::start(state.clone(), link, asked, Sending::send) {
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
            Ok(Some(Call::Prefill(job))) => state.start(*job, prefiller, &mut listeners),
            Ok(Some(Call::Returned(kv))) => prefiller.returned(kv),
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}
