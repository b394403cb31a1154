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
    atomic::{AtomicBool, Ordering},
};

use baton_engine::EngineHandle;
use baton_kv_transfer::Sessions;
use baton_protocol::wire::decode_server::DecodeServer;
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
    draining: AtomicBool,
    /// Counts the open attempts, which run inside their streams.
    attempts: TaskTracker,
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
            draining: AtomicBool::new(false),
            attempts: TaskTracker::new(),
        };
        Self { node: Arc::new(node) }
    }

    /// For a tonic server.
    pub fn service(&self) -> DecodeServer<DecodeService> {
        DecodeServer::new(DecodeService::new(Arc::clone(&self.node)))
    }

    /// Refuses new attempts from now on. Can be called again.
    pub fn close(&self) {
        self.node.draining.store(true, Ordering::SeqCst);
        self.node.attempts.close();
    }

    /// Refuses new attempts from now on and waits until the open ones have
    /// ended or were dropped by their callers. Can be called again.
    pub async fn drain(&self) {
        self.close();
        self.node.attempts.wait().await;
    }

    /// Takes attempts again.
    pub fn reopen(&self) {
        self.node.attempts.reopen();
        self.node.draining.store(false, Ordering::SeqCst);
    }

    /// Whether new attempts are refused.
    pub fn is_draining(&self) -> bool {
        self.node.draining.load(Ordering::SeqCst)
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
