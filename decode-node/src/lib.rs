//! Promises pages, receives KV, generates tokens.
//!
//! - [`DecodeNode`]: serves `Decode.Generate`; drains
//! - `attempt`: one request from its opening to its last token, top to bottom
//! - `leg`: one prefill node asked within an attempt
//! - `room`: what is cached here of a prompt, and a promise for the rest
//! - `landing`: where a handoff's pages land
//! - `open`: what a coordinator asks for, checked; what is resumed
//! - `caller`: what the coordinator is told, and what it says meanwhile
//! - [`DecodeConfig`], [`DecodeMetrics`]

mod attempt;
mod caller;
mod config;
mod landing;
mod leg;
mod metrics;
mod open;
mod room;
mod service;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use baton_engine::EngineHandle;
use baton_kv_transfer::Sessions;
use baton_protocol::{Intake, wire::decode_server::DecodeServer};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

pub use config::DecodeConfig;
pub use metrics::DecodeMetrics;
pub use service::DecodeService;

/// One node's decode role over its engine and its sessions. Clones are the same node.
#[derive(Clone)]
pub struct DecodeNode {
    node: Arc<Node>,
}

/// What all attempts share.
struct Node {
    engine: EngineHandle,
    sessions: Arc<Sessions>,
    config: DecodeConfig,
    metrics: DecodeMetrics,
    intake: Mutex<Intake>,
    /// Counts the open attempts, which run inside their streams.
    attempts: TaskTracker,
    /// Those ever opened.
    begun: AtomicU64,
}

// === impl DecodeNode ===

impl DecodeNode {
    /// A node that takes attempts until it drains.
    pub fn new(engine: EngineHandle, sessions: Arc<Sessions>, config: DecodeConfig) -> Self {
        let node = Node {
            engine,
            sessions,
            config,
            metrics: DecodeMetrics::default(),
            intake: Mutex::default(),
            attempts: TaskTracker::new(),
            begun: AtomicU64::new(0),
        };
        Self { node: Arc::new(node) }
    }

    /// For a tonic server.
    pub fn service(&self) -> DecodeServer<DecodeService> {
        DecodeServer::new(DecodeService::new(Arc::clone(&self.node)))
    }

    /// Takes new attempts from now on, or refuses them.
    pub fn set_intake(&self, intake: Intake) {
        *self.node.intake.lock() = intake;
        if intake == Intake::Closed {
            self.node.attempts.close();
        } else {
            self.node.attempts.reopen();
        }
    }

    /// Refuses new attempts from now on and waits until the open ones have
    /// ended or were dropped by their callers. Can be called again.
    pub async fn drain(&self) {
        self.set_intake(Intake::Closed);
        self.node.attempts.wait().await;
    }

    /// Whether it takes new attempts.
    pub fn intake(&self) -> Intake {
        *self.node.intake.lock()
    }

    /// Attempts that it ever had.
    pub fn begun(&self) -> u64 {
        self.node.begun.load(Ordering::Relaxed)
    }

    /// Attempts that it has.
    pub fn attempts(&self) -> usize {
        self.node.attempts.len()
    }

    /// Metrics, to be registered once.
    pub fn metrics(&self) -> &DecodeMetrics {
        &self.node.metrics
    }
}

// === impl Node ===

impl Node {
    /// Tokens of a page here.
    fn page_tokens(&self) -> usize {
        self.engine.pool().shape().page_tokens as usize
    }
}
