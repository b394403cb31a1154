//! What every node answers, whatever its roles: who it is, how loaded it is,
//! what its prefix cache holds, and the text side of its model.
//!
//! A node serves this once a process. The engine stays out of sight: all but
//! the text comes through closures, so that this crate needs no engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use baton_protocol::{
    NodeInfo, PrefixChanges, Role,
    node::UnknownRole,
    wire::{
        self, DescribeRequest, DrainRequest, ForgetRequest, LoadReport, LoadRequest, ModelTextChunk,
        ModelTextRequest, NodeDescription, PrefixesRequest, RolesRequest,
        node_server::{Node, NodeServer},
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::IntervalStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Bytes of one [`ModelTextChunk`], far below gRPC's limit for a message.
pub const TEXT_CHUNK_BYTES: usize = 64 * 1024;

/// Bounds on the interval at which a caller may ask for reports, milliseconds.
const INTERVAL_MS: std::ops::RangeInclusive<u32> = 10..=10_000;

/// Says who the node is, now.
pub type Describe = Arc<dyn Fn() -> NodeInfo + Send + Sync>;

/// Says how loaded the node is, now.
pub type Load = Arc<dyn Fn() -> LoadReport + Send + Sync>;

/// Says what the prefix cache holds, now: what has changed after the change of a
/// number, or with none everything.
pub type Prefixes = Arc<dyn Fn(Option<u64>) -> PrefixChanges + Send + Sync>;

/// Takes no new work from now on, or takes it again. False when the node cannot: it is leaving.
pub type Drain = Arc<dyn Fn(bool) -> bool + Send + Sync>;

/// Takes new work of these roles alone from now on, unless the epoch is not that of its roles.
pub type SetRoles = Arc<dyn Fn(u64, BTreeSet<Role>) -> Result<(), RolesError> + Send + Sync>;

/// Why a node keeps its roles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolesError {
    /// It ends soon.
    #[error("the node is leaving")]
    Leaving,
    /// Somebody else changed them meanwhile.
    #[error("the node's roles are of epoch {now}, not {based_on}")]
    Stale {
        /// The epoch that the change was made for.
        based_on: u64,
        /// That of its roles.
        now: u64,
    },
    /// None, or one that is no work of such a node.
    #[error("a node can be prefill, decode, or both")]
    NoWork,
    /// No peer would believe it.
    #[error("the node's certificate is not for role {role}")]
    Uncertified {
        /// Which role.
        role: Role,
    },
}

/// Forgets what the prefix cache holds.
pub type Forget = Arc<dyn Fn() + Send + Sync>;

/// What a node says and does when asked.
#[derive(Clone)]
pub struct Words {
    /// Who it is.
    pub describe: Describe,
    /// How loaded it is.
    pub load: Load,
    /// What its prefix cache holds.
    pub prefixes: Prefixes,
    /// Whether it takes work.
    pub drain: Drain,
    /// Which work it takes.
    pub set_roles: SetRoles,
    /// Whatever its prefix cache holds.
    pub forget: Forget,
}

/// Serves [`Node`].
pub struct NodeService {
    words: Words,
    texts: BTreeMap<String, Bytes>,
    shutdown: CancellationToken,
}

// === impl NodeService ===

impl NodeService {
    /// A service with these words. `texts` holds
    /// model texts by digest. Streams of reports have no end of their own: they end
    /// on `shutdown`, so that a graceful stop of the server can finish.
    pub fn new(
        words: Words,
        texts: impl IntoIterator<Item = (String, Bytes)>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { words, texts: texts.into_iter().collect(), shutdown }
    }

    /// Wrapped for a tonic server.
    pub fn service(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }

    fn description(&self) -> Result<Response<NodeDescription>, Status> {
        let info_json = serde_json::to_string(&(self.words.describe)())
            .map_err(|error| Status::internal(format!("node info cannot be written: {error}")))?;
        Ok(Response::new(NodeDescription { info_json }))
    }

    fn check(&self, incarnation: u64) -> Result<(), Status> {
        if (self.words.describe)().incarnation.0 == incarnation {
            return Ok(());
        }
        Err(Status::failed_precondition("another incarnation is meant"))
    }
}

/// One tick for each report.
fn ticks(interval_ms: u32) -> IntervalStream {
    let interval_ms = interval_ms.clamp(*INTERVAL_MS.start(), *INTERVAL_MS.end());
    let mut ticks = tokio::time::interval_at(Instant::now(), Duration::from_millis(u64::from(interval_ms)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    IntervalStream::new(ticks)
}

/// What there is to say to one who knows the changes up to a number, if anything.
fn tell(prefixes: &Prefixes, known: &mut Option<u64>) -> Vec<wire::PrefixChanges> {
    let before = *known;
    let changes = prefixes(before);
    *known = Some(changes.number);
    if before == Some(changes.number) {
        return Vec::new();
    }
    wire::PrefixChanges::parts(&changes, before.is_none())
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for NodeService {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<NodeDescription>, Status> {
        self.description()
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<NodeDescription>, Status> {
        let DrainRequest { incarnation, drain } = request.into_inner();
        self.check(incarnation)?;
        if !(self.words.drain)(drain) {
            return Err(Status::failed_precondition("the node is leaving"));
        }
        self.description()
    }

    async fn set_roles(&self, request: Request<RolesRequest>) -> Result<Response<NodeDescription>, Status> {
        let RolesRequest { incarnation, epoch, roles } = request.into_inner();
        self.check(incarnation)?;
        let roles = roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
        let roles = roles.map_err(|unknown: UnknownRole| Status::invalid_argument(unknown.to_string()))?;
        (self.words.set_roles)(epoch, roles)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        self.description()
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<NodeDescription>, Status> {
        self.check(request.into_inner().incarnation)?;
        (self.words.forget)();
        self.description()
    }

    type LoadStream = Answer<LoadReport>;

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let load = Arc::clone(&self.words.load);
        let reports = ticks(request.into_inner().interval_ms).map(move |_| Ok(load()));
        Ok(Response::new(Box::pin(reports.take_until(self.shutdown.clone().cancelled_owned()))))
    }

    type PrefixesStream = Answer<wire::PrefixChanges>;

    async fn prefixes(
        &self,
        request: Request<PrefixesRequest>,
    ) -> Result<Response<Self::PrefixesStream>, Status> {
        let PrefixesRequest { incarnation, after, interval_ms } = request.into_inner();
        self.check(incarnation)?;
        let prefixes = Arc::clone(&self.words.prefixes);
        let mut known = (after > 0).then_some(after);
        let parts = ticks(interval_ms)
            .flat_map(move |_| stream::iter(tell(&prefixes, &mut known).into_iter().map(Ok)))
            .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(parts)))
    }

    type ModelTextStream = Answer<ModelTextChunk>;

    async fn model_text(
        &self,
        request: Request<ModelTextRequest>,
    ) -> Result<Response<Self::ModelTextStream>, Status> {
        let digest = request.into_inner().digest;
        let Some(text) = self.texts.get(&digest).cloned() else {
            return Err(Status::not_found("no model text of this digest"));
        };
        let chunks = (0..text.len()).step_by(TEXT_CHUNK_BYTES).map(move |start| {
            let end = text.len().min(start + TEXT_CHUNK_BYTES);
            Ok(ModelTextChunk { data: text.slice(start..end) })
        });
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }
}

#[cfg(test)]
mod tests;
