//! The decode node's pool of sessions to prefill nodes.

use std::{collections::HashMap, sync::Arc, time::Instant};

use baton_protocol::{
    HandoffId, Incarnation, NodeId, Role,
    wire::{self, Control},
};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{
    connect::{Opened, open},
    offers::Offers,
    receiving::{Handoff, Receiving, UnderWay},
    running::{Running, tick, write},
};
use crate::{
    HandoffAsk, HandoffError, Landing, LocalNode, PathReport, SessionError, TransferConfig, TransferMetrics,
    metrics::Side, transport::offer::Transports,
};

/// A node to ask for KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPeer {
    /// Its name.
    pub node: NodeId,
    /// Its gRPC address, `host:port`.
    pub control_addr: String,
    /// The incarnation that is meant; another one at the address refuses.
    pub incarnation: Incarnation,
    /// What its certificate must let it be, if there are certificates.
    pub role: Role,
}

/// One open session, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionReport {
    /// The node on the other side.
    pub peer: NodeId,
    /// How its data travels.
    pub path: PathReport,
    /// Handoffs whose KV came whole over it.
    pub handoffs: u64,
    /// Those that are not closed.
    pub under_way: Vec<UnderWay>,
}

impl From<SessionReport> for wire::KvPath {
    fn from(SessionReport { peer, path, handoffs, under_way }: SessionReport) -> Self {
        let theirs = || path.others_fallback().map(|why| format!("the prefill node was {why}"));
        Self {
            prefill_node: peer.0,
            transport: path.transport.as_str().to_owned(),
            bytes_per_second: path.bandwidth().unwrap_or(0.0),
            fallback: path.fallback().or_else(theirs).unwrap_or_default(),
            handoffs,
            under_way: under_way.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<UnderWay> for wire::HandoffUnderWay {
    fn from(UnderWay { id, state, age, tokens, bytes }: UnderWay) -> Self {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let (id, state) = (Some(id.into()), state.to_owned());
        Self { id, state, age_ms, have: tokens.start, tokens: tokens.end, bytes }
    }
}

/// Sessions to prefill nodes: made on first use, one a peer, shared by all
/// callers, replaced when dead or when the peer is another incarnation.
pub struct Sessions {
    local: LocalNode,
    config: TransferConfig,
    transports: Transports,
    metrics: TransferMetrics,
    slots: Mutex<HashMap<NodeId, Slot>>,
    /// Handoffs that are offered KV of what came before them.
    offers: Offers,
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

struct Slot {
    incarnation: Incarnation,
    phase: watch::Receiver<Phase>,
    stop: CancellationToken,
}

#[derive(Clone)]
enum Phase {
    Opening,
    Open(Arc<Receiving>),
    Dead(SessionError),
}

// === impl Sessions ===

impl Sessions {
    /// No sessions yet.
    ///
    /// # Errors
    /// When the config names a transport that is not in this build.
    pub fn new(local: LocalNode, config: TransferConfig) -> Result<Self, SessionError> {
        let transports = Transports::new(&config, &local.trust, Side::Receiving)?;
        Ok(Self {
            local,
            config,
            transports,
            metrics: TransferMetrics::new(Side::Receiving),
            slots: Mutex::default(),
            offers: Offers::default(),
            tasks: Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    /// Asks a prefill node for KV. Opens a session if there is none.
    ///
    /// # Errors
    /// When there is no session with the peer, or the ask makes no sense.
    pub async fn handoff(
        &self,
        peer: &KvPeer,
        ask: HandoffAsk,
        landing: Box<dyn Landing>,
    ) -> Result<Handoff, HandoffError> {
        ask.check()?;
        let offer = ask.holder.is_some().then(|| self.offers.add(ask.id));
        let mut handoff = self.open(peer).await?.open(&ask, landing)?;
        handoff.offer = offer;
        Ok(handoff)
    }

    /// The open session with a node, or a new one.
    async fn open(&self, peer: &KvPeer) -> Result<Arc<Receiving>, SessionError> {
        let mut phase = self.session(peer);
        let opened =
            phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await.map(|phase| phase.clone());
        match opened {
            Ok(Phase::Open(session)) => Ok(session),
            Ok(Phase::Dead(error)) => Err(error),
            Ok(Phase::Opening) | Err(_) => Err(SessionError::down("closed here")),
        }
    }

    /// What the road from a node carried when it was measured, in bytes a second. Opens a session if there is none.
    ///
    /// # Errors
    /// When there is no session with it.
    pub async fn bandwidth(&self, peer: &KvPeer) -> Result<Option<f64>, SessionError> {
        Ok(self.open(peer).await?.path().bandwidth())
    }

    /// This node, as one that holds KV.
    pub fn holder(&self) -> KvPeer {
        let LocalNode { node, incarnation, control_addr, .. } = self.local.clone();
        KvPeer { node, control_addr, incarnation, role: Role::Decode }
    }

    /// Whether this node, of itself, offers whoever prefills for this handoff the KV of what came before it.
    pub fn offers(&self, id: &HandoffId) -> bool {
        self.offers.contain(id)
    }

    /// Tells a prefill node that KV of `tokens` is cached here and may be
    /// fetched. Costs a message, holds nothing, and needs an open session.
    pub fn hand_back(&self, to: &NodeId, id: HandoffId, tenant: String, tokens: Vec<u32>) {
        if self.config.return_bytes_per_second == 0 {
            return;
        }
        let phase = self.slots.lock().get(to).map(|slot| slot.phase.borrow().clone());
        if let Some(Phase::Open(session)) = phase {
            let (id, control_addr) = (Some(id.into()), self.local.control_addr.clone());
            session.hand_back(wire::Return { id, tenant, tokens, control_addr });
        }
    }

    /// The peer's session as it is, or a new one that is being opened.
    fn session(&self, peer: &KvPeer) -> watch::Receiver<Phase> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&peer.node) {
            let alive = match &*slot.phase.borrow() {
                Phase::Opening => slot.phase.has_changed().is_ok(),
                Phase::Open(session) => session.ended().is_none(),
                Phase::Dead(_) => false,
            };
            if alive && slot.incarnation == peer.incarnation {
                return slot.phase.clone();
            }
            // Everything of another incarnation is dead, whatever its sockets say.
            slot.stop.cancel();
        }
        // Nodes come under ever new names.
        slots.retain(|_, slot| !matches!(*slot.phase.borrow(), Phase::Dead(_)));
        let (tell, phase) = watch::channel(Phase::Opening);
        let stop = self.stop.child_token();
        slots.insert(
            peer.node.clone(),
            Slot { incarnation: peer.incarnation, phase: phase.clone(), stop: stop.clone() },
        );
        let (local, config, metrics) = (self.local.clone(), self.config.clone(), self.metrics.clone());
        let (transports, peer) = (self.transports.clone(), peer.clone());
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let limit = config.connect_timeout();
            let opened = tokio::select! {
                opened = timeout(limit, open(&local, &config, &transports, &metrics, &peer)) => opened.unwrap_or_else(|_| {
                    Err(SessionError::Connect { node: peer.node.0.clone(), reason: format!("nothing within {limit:?}") })
                }),
                () = stop.cancelled() => Err(SessionError::down("closed here")),
            };
            let ended = match opened {
                Ok(opened) => drive(opened, &config, &tell, &stop).await,
                Err(error) => error,
            };
            tell.send_replace(Phase::Dead(ended));
        });
        phase
    }

    /// Open sessions and how their data travels.
    pub fn reports(&self) -> Vec<SessionReport> {
        let slots = self.slots.lock();
        let report = |(peer, slot): (&NodeId, &Slot)| match &*slot.phase.borrow() {
            Phase::Open(session) if session.ended().is_none() => {
                let (path, handoffs, under_way) =
                    (session.path().clone(), session.whole(), session.under_way());
                Some(SessionReport { peer: peer.clone(), path, handoffs, under_way })
            }
            _ => None,
        };
        slots.iter().filter_map(report).collect()
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &TransferMetrics {
        &self.metrics
    }

    /// Ends all sessions, and waits until their threads and tasks are gone.
    /// No session can be opened any more.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs an open session to its end; why it ended.
async fn drive(
    opened: Opened,
    config: &TransferConfig,
    tell: &watch::Sender<Phase>,
    stop: &CancellationToken,
) -> SessionError {
    let Opened { state, mut inbound, outbound, link } = opened;
    let asked = link.end.asked_every();
    let mut running = match Running::start(state.clone(), link, asked, Receiving::receive) {
        Ok(running) => running,
        Err(error) => return SessionError::down(format!("no data thread: {error}")),
    };
    tell.send_replace(Phase::Open(state.clone()));
    let ended = tokio::select! {
        ended = read(&state, &mut inbound) => ended,
        ended = write(&*state, &outbound, |control| control) => ended,
        ended = tick(&*state, config.tick()) => ended,
        ended = running.broken() => ended,
        () = stop.cancelled() => SessionError::down("closed here"),
    };
    running.finish(ended.clone()).await;
    ended
}

async fn read(state: &Receiving, inbound: &mut Streaming<Control>) -> SessionError {
    loop {
        match inbound.message().await {
            Ok(Some(control)) => {
                if let Err(error) = state.control(control, Instant::now()) {
                    return error;
                }
            }
            Ok(None) => return SessionError::down("the prefill node closed it"),
            Err(status) => return SessionError::down(format!("control stream: {}", status.message())),
        }
    }
}
