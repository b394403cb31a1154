//! One incarnation of a node.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use baton_protocol::{
    NodeId, NodeInfo, NodeState, PageCounts, StepModel,
    wire::{KvPath, LoadReport},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::sent::{InFlight, Sent, SentPrefill, SharedLedger};
use crate::{node_client::NodeClient, prefix::Holder};

/// What direct checks say of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Announced, and has not answered yet, or not since a stream to it broke.
    Joining,
    /// Answers and takes work.
    Ready,
    /// Answers and finishes what it has.
    Draining,
    /// Did not answer several times, or is another process now.
    Lost,
}

/// A node's report of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences waiting for it.
    pub waiting: u32,
    /// Prompt tokens waiting to be computed.
    pub waiting_prefill_tokens: u64,
    /// Tokens that running answers attend to, in all.
    pub running_context_tokens: u64,
    /// Prompt tokens that a step takes beside the answers that go on now; 0 is unknown.
    pub step_prompt_tokens: u64,
    /// How long its steps take.
    pub steps: StepModel,
    /// Sequences of a role that it no longer has.
    pub left_over: u32,
    /// Requests that it has begun to decode, of all coordinators.
    pub attempts_begun: u64,
    /// Pages of its pool by state.
    pub pages: PageCounts,
    /// What this coordinator had sent to it when the report came: the rest is of others.
    pub sent: Sent,
}

/// A node as announced once; a restarted node is another one.
#[derive(Debug)]
pub(crate) struct Node {
    id: NodeId,
    info: Mutex<Arc<NodeInfo>>,
    client: Mutex<NodeClient>,
    health: watch::Sender<Health>,
    load: Mutex<Load>,
    kv_paths: Mutex<Arc<[KvPath]>>,
    announced: AtomicBool,
    /// Counts what it said on its own: load reports, and messages of attempts.
    heard: AtomicU64,
    /// Asks for a health check now.
    ask: Notify,
    /// Another incarnation has taken its name.
    replaced: CancellationToken,
    sent: SharedLedger,
    sent_attempts: AtomicU64,
    /// What it holds, as far as that is known.
    prefixes: Holder,
}

// === impl Health ===

impl Health {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Ready, Self::Draining, Self::Lost];

    /// Its name in metrics and on status pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

impl From<NodeState> for Health {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Ready => Self::Ready,
            NodeState::Draining => Self::Draining,
        }
    }
}

// === impl Node ===

impl Node {
    pub(super) fn new(info: NodeInfo, client: NodeClient, prefixes: Holder) -> Self {
        Self {
            id: info.id.clone(),
            info: Mutex::new(Arc::new(info)),
            client: Mutex::new(client),
            health: watch::Sender::new(Health::Joining),
            load: Mutex::default(),
            kv_paths: Mutex::new([].into()),
            announced: AtomicBool::new(true),
            heard: AtomicU64::new(0),
            ask: Notify::new(),
            replaced: CancellationToken::new(),
            sent: SharedLedger::default(),
            sent_attempts: AtomicU64::new(0),
            prefixes,
        }
    }

    pub(crate) fn id(&self) -> &NodeId {
        &self.id
    }

    /// Its latest description, at first the registry's.
    pub(crate) fn info(&self) -> Arc<NodeInfo> {
        Arc::clone(&self.info.lock())
    }

    /// Its connection, to a server that is certified for the roles it announces.
    pub(crate) fn client(&self) -> NodeClient {
        self.client.lock().clone()
    }

    pub(crate) fn health(&self) -> Health {
        *self.health.borrow()
    }

    pub(crate) fn load(&self) -> Load {
        *self.load.lock()
    }

    /// How KV comes to it.
    pub(crate) fn kv_paths(&self) -> Arc<[KvPath]> {
        Arc::clone(&self.kv_paths.lock())
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.sent().requests as usize
    }

    /// What this coordinator has sent to it.
    pub(crate) fn sent(&self) -> Sent {
        self.sent.lock().sent(Instant::now())
    }

    /// Requests ever sent to it to decode.
    pub(crate) fn sent_attempts(&self) -> u64 {
        self.sent_attempts.load(Ordering::Relaxed)
    }

    /// Its part of the prefix index.
    pub(crate) fn prefixes(&self) -> &Holder {
        &self.prefixes
    }

    /// Ends when the node is lost, which may be now.
    pub(crate) async fn lost(&self) {
        let lost = |health: &Health| *health == Health::Lost;
        // The sender lives in self: waiting cannot fail.
        let _ = self.health.subscribe().wait_for(lost).await;
    }

    /// Whether it turns out to be lost, once that is known.
    pub(crate) async fn died(&self) -> bool {
        let known = |health: &Health| *health != Health::Joining;
        let mut health = self.health.subscribe();
        health.wait_for(known).await.is_ok_and(|health| *health == Health::Lost)
    }

    /// It said something, so it lives.
    pub(crate) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream to it broke: no new work until it has answered again, and it is asked now.
    pub(crate) fn suspect(&self) {
        self.health.send_if_modified(|health| {
            let ready = *health == Health::Ready;
            if ready {
                *health = Health::Joining;
            }
            ready
        });
        self.check_soon();
    }

    /// It is asked soon who it is.
    pub(crate) fn check_soon(&self) {
        self.ask.notify_one();
    }

    /// Counts a request on it.
    pub(crate) fn occupy(&self) -> InFlight {
        self.sent_attempts.fetch_add(1, Ordering::Relaxed);
        InFlight::on(&self.sent)
    }

    /// Counts a prompt sent to it.
    pub(crate) fn send_prefill(&self, tokens: usize) -> SentPrefill {
        SentPrefill::to(&self.sent, tokens)
    }

    /// Whether this is the incarnation that `info` announces, at the same place.
    pub(super) fn is(&self, info: &NodeInfo) -> bool {
        let known = self.info();
        known.incarnation == info.incarnation && known.control_addr == info.control_addr
    }

    /// Whether the registry lists it; a change asks the node itself.
    pub(super) fn set_announced(&self, announced: bool) {
        self.announced.store(announced, Ordering::Relaxed);
        self.check_soon();
    }

    /// Another incarnation has its name: whatever runs here is lost.
    pub(super) fn replace(&self) {
        self.health.send_replace(Health::Lost);
        self.replaced.cancel();
    }

    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    pub(super) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    pub(super) async fn asked(&self) {
        self.ask.notified().await;
    }

    pub(super) fn set_client(&self, client: NodeClient) {
        *self.client.lock() = client;
    }

    /// Takes its own description, and gives the one before. None when it was
    /// said before its roles were changed, and came late.
    pub(super) fn set_info(&self, info: NodeInfo) -> Option<Arc<NodeInfo>> {
        let mut known = self.info.lock();
        (info.epoch >= known.epoch).then(|| std::mem::replace(&mut *known, Arc::new(info)))
    }

    /// Sets its health and returns the one before.
    pub(super) fn set_health(&self, health: Health) -> Health {
        self.health.send_replace(health)
    }

    pub(super) fn set_load(&self, report: LoadReport) {
        self.hear();
        *self.load.lock() = Load {
            running: report.running_sequences,
            waiting: report.waiting_sequences,
            waiting_prefill_tokens: report.waiting_prefill_tokens,
            running_context_tokens: report.running_context_tokens,
            step_prompt_tokens: report.step_prompt_tokens,
            steps: report.step_model(),
            left_over: report.left_over_sequences,
            attempts_begun: report.attempts_begun,
            pages: report.pages.unwrap_or_default().into(),
            sent: self.sent(),
        };
        *self.kv_paths.lock() = report.kv_paths.into();
    }
}
