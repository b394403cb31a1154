//! The seam to the coordinator, so that this room can be tested without a cluster.

use std::{
    collections::BTreeSet,
    sync::Arc,
    task::{Context, Poll},
};

use baton_coordinator::{Coordinator, Health, ServedModel, Wishes};
use baton_protocol::{ErrorCode, Event, Failure, NodeId, Request, Role, wire};
use futures::{StreamExt, future::BoxFuture};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who answers requests. Implemented by the coordinator, and by a script in tests.
pub trait Dispatch: Send + Sync + 'static {
    /// Starts an answer, or says why not. Dropping the future or the answer cancels.
    fn dispatch(&self, request: Request, wishes: Wishes) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>>;

    /// Models that nodes serve, or have served.
    fn models(&self) -> Vec<ServedModel>;

    /// Names of models that are to be served, whether or not a node is there; the first is meant where none is named.
    fn expected(&self) -> &[String];

    /// Serialized tokenizer, template and limits of a model.
    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>>;

    /// Has nodes forget what their prefix caches hold.
    fn forget_prefixes(&self) -> BoxFuture<'_, Result<(), Failure>>;

    /// Whether a request could be served.
    ///
    /// # Errors
    /// Every reason why not.
    fn ready(&self) -> Result<Readiness, Vec<String>>;
}

/// What a cluster that serves has.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// Nodes that take work.
    #[serde(rename = "ready_nodes")]
    pub nodes: usize,
    /// Models that have a decode node among them.
    pub models: BTreeSet<String>,
    /// How KV travels between them.
    pub kv_paths: Vec<KvPath>,
}

/// An open session of two nodes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KvPath {
    /// The prefill node.
    pub from: String,
    /// The decode node.
    pub to: String,
    /// The transport in use.
    pub transport: String,
    /// As measured when it was opened, if it was.
    pub bytes_per_second: Option<f64>,
    /// If one of the two was told to use another transport: which, and why it does not.
    pub fallback: Option<String>,
}

/// Events of one request, as they come: tokens, one `Finished` a choice, one
/// `Bill` before the last of them, or `Failed`. Retries have happened inside.
/// Dropping it cancels.
pub trait Answer: Send {
    /// The next event; none after the last.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>>;

    /// No more tokens of this choice are needed; it ends with `Finished`.
    fn stop_choice(&mut self, choice: u32);
}

// === impl for the coordinator ===

impl Dispatch for Coordinator {
    fn dispatch(&self, request: Request, wishes: Wishes) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>> {
        Box::pin(async move {
            let answer = self.dispatch(request, wishes).await?;
            Ok(Box::new(answer) as Box<dyn Answer>)
        })
    }

    fn models(&self) -> Vec<ServedModel> {
        self.models()
    }

    fn expected(&self) -> &[String] {
        self.expected()
    }

    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>> {
        Box::pin(self.model_text(model))
    }

    fn forget_prefixes(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            // Who did not is in this process's log.
            let failed = |_| Failure::new(ErrorCode::Unavailable, "not every node forgot what it holds");
            self.forget_prefixes().await.map(drop).map_err(failed)
        })
    }

    fn ready(&self) -> Result<Readiness, Vec<String>> {
        let status = self.status();
        if status.ready {
            let ready = || status.nodes.iter().filter(|node| node.health == Health::Ready);
            let kv_paths =
                ready().flat_map(|node| node.kv_paths.iter().map(|path| KvPath::of(path, &node.id)));
            let decoding = ready().filter(|node| node.roles.contains(&Role::Decode));
            let models = decoding.map(|node| node.model.clone()).collect();
            return Ok(Readiness { nodes: ready().count(), models, kv_paths: kv_paths.collect() });
        }
        let decoding = status.nodes.iter().filter(|node| node.roles.contains(&Role::Decode));
        let reasons: Vec<_> =
            decoding.map(|node| format!("decode node {} is {}", node.id, word(node.health))).collect();
        Err(if reasons.is_empty() { vec!["no decode node is known".to_owned()] } else { reasons })
    }
}

impl KvPath {
    fn of(path: &wire::KvPath, to: &NodeId) -> Self {
        Self {
            from: path.prefill_node.clone(),
            to: to.0.clone(),
            transport: path.transport.clone(),
            bytes_per_second: (path.bytes_per_second > 0.0).then_some(path.bytes_per_second),
            fallback: (!path.fallback.is_empty()).then(|| path.fallback.clone()),
        }
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Joining => "joining",
        Health::Ready => "ready",
        Health::Draining => "draining",
        Health::Lost => "lost",
    }
}

impl Answer for baton_coordinator::Answer {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_next_unpin(cx)
    }

    fn stop_choice(&mut self, choice: u32) {
        self.stop_choice(choice);
    }
}
