//! What every node answers, whatever its roles: who it is, how loaded it is,
//! and the text side of its model.
//!
//! A node serves this once a process. The engine stays out of sight: load and
//! description come through closures, so that this crate needs no engine.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use baton_protocol::{
    NodeInfo,
    wire::{
        DescribeRequest, LoadReport, LoadRequest, ModelTextChunk, ModelTextRequest, NodeDescription,
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

/// Bounds on the interval at which a caller may ask for load reports, milliseconds.
const INTERVAL_MS: std::ops::RangeInclusive<u32> = 50..=10_000;

/// Says who the node is, now.
pub type Describe = Arc<dyn Fn() -> NodeInfo + Send + Sync>;

/// Says how loaded the node is, now.
pub type Load = Arc<dyn Fn() -> LoadReport + Send + Sync>;

/// Serves [`Node`].
pub struct NodeService {
    describe: Describe,
    load: Load,
    texts: BTreeMap<String, Bytes>,
    shutdown: CancellationToken,
}

// === impl NodeService ===

impl NodeService {
    /// A service that describes itself through the closures. `texts` holds
    /// model texts by digest. Load streams have no end of their own: they end
    /// on `shutdown`, so that a graceful stop of the server can finish.
    pub fn new(
        describe: Describe,
        load: Load,
        texts: impl IntoIterator<Item = (String, Bytes)>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { describe, load, texts: texts.into_iter().collect(), shutdown }
    }

    /// Wrapped for a tonic server.
    pub fn service(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for NodeService {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<NodeDescription>, Status> {
        let info_json = serde_json::to_string(&(self.describe)())
            .map_err(|error| Status::internal(format!("node info cannot be written: {error}")))?;
        Ok(Response::new(NodeDescription { info_json }))
    }

    type LoadStream = Answer<LoadReport>;

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        let interval_ms = request.into_inner().interval_ms.clamp(*INTERVAL_MS.start(), *INTERVAL_MS.end());
        let mut ticks =
            tokio::time::interval_at(Instant::now(), Duration::from_millis(u64::from(interval_ms)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let load = Arc::clone(&self.load);
        let reports = IntervalStream::new(ticks).map(move |_| Ok(load()));
        Ok(Response::new(Box::pin(reports.take_until(self.shutdown.clone().cancelled_owned()))))
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
