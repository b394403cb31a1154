//! Connections to nodes.

use std::{collections::BTreeSet, time::Duration};

use baton_protocol::{
    ErrorCode, Failure, Incarnation, NodeInfo, Role,
    wire::{
        DescribeRequest, DrainRequest, ForgetRequest, GenerateDown, GenerateUp, LoadReport, LoadRequest,
        ModelTextRequest, NodeDescription, PrefixChanges, PrefixesRequest, RolesRequest, StopChoice,
        decode_client::DecodeClient, generate_up::Message, node_client::NodeClient as NodeStub,
    },
};
use baton_trust::{ReachError, Trust};
use futures::{StreamExt, stream};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

/// One HTTP/2 connection to a node, opened on first use and again after a
/// break; requests share it.
#[derive(Clone, Debug)]
pub(crate) struct NodeClient {
    channel: Channel,
}

/// A node's answer that is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescribeError {
    #[error("the node did not answer")]
    Status(#[from] Box<Status>),
    #[error("the node's description cannot be read")]
    Json(#[from] serde_json::Error),
}

/// Bytes of an answer that may wait for its reader, in HTTP/2's window of a stream; and of all together, more
/// than there are of those: readers that are slow hold up nobody else who shares the connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// How long a node may take to do what it is told.
const TOLD_LIMIT: Duration = Duration::from_secs(5);

/// Longest `ModelText`: tokenizers of today are below 20 MiB.
const MAX_TEXT_BYTES: usize = 64 << 20;

impl NodeClient {
    /// A node at an address, whose certificate must be for all of `roles`. Must be called within a
    /// tokio runtime, which will run the connection.
    pub(crate) fn new(trust: &Trust, addr: &str, roles: &BTreeSet<Role>) -> Result<Self, ReachError> {
        let channel = trust
            .callee(addr, roles)?
            .with(|endpoint| {
                endpoint
                    .connect_timeout(Duration::from_secs(2))
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .http2_keep_alive_interval(Duration::from_secs(10))
                    .keep_alive_timeout(Duration::from_secs(10))
                    .keep_alive_while_idle(true)
            })
            .connect_lazy();
        Ok(Self { channel })
    }

    /// Opens one attempt; what follows are the choices that need no more tokens.
    pub(crate) async fn generate(
        &self,
        open: GenerateUp,
        stopped: mpsc::Receiver<u32>,
    ) -> Result<Streaming<GenerateDown>, Status> {
        let stop = |choice| GenerateUp { message: Some(Message::StopChoice(StopChoice { choice })) };
        let up = stream::iter([open]).chain(ReceiverStream::new(stopped).map(stop));
        Ok(DecodeClient::new(self.channel.clone()).generate(up).await?.into_inner())
    }

    /// Who the node is now.
    pub(crate) async fn describe(&self) -> Result<NodeInfo, DescribeError> {
        told(NodeStub::new(self.channel.clone()).describe(DescribeRequest {}).await)
    }

    /// Takes no new work, or takes it again; who it is then.
    pub(crate) async fn drain(
        &self,
        incarnation: Incarnation,
        drain: bool,
    ) -> Result<NodeInfo, DescribeError> {
        let ask = DrainRequest { incarnation: incarnation.0, drain };
        let answer = timeout(TOLD_LIMIT, NodeStub::new(self.channel.clone()).drain(ask)).await;
        told(answer.map_err(|_| Status::deadline_exceeded("no answer in time")).flatten())
    }

    /// Takes new work of these roles alone, if those of now are of this epoch; who it is then.
    pub(crate) async fn set_roles(
        &self,
        (incarnation, epoch): (Incarnation, u64),
        roles: &BTreeSet<Role>,
    ) -> Result<NodeInfo, DescribeError> {
        let roles = roles.iter().map(ToString::to_string).collect();
        let ask = RolesRequest { incarnation: incarnation.0, epoch, roles };
        let answer = timeout(TOLD_LIMIT, NodeStub::new(self.channel.clone()).set_roles(ask)).await;
        told(answer.map_err(|_| Status::deadline_exceeded("no answer in time")).flatten())
    }

    /// Forgets what its prefix cache holds.
    pub(crate) async fn forget(&self, incarnation: Incarnation) -> Result<(), Status> {
        let ask = ForgetRequest { incarnation: incarnation.0 };
        let answer = timeout(TOLD_LIMIT, NodeStub::new(self.channel.clone()).forget(ask)).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))).map(drop)
    }

    /// Load reports at an interval.
    pub(crate) async fn load(&self, interval_ms: u32) -> Result<Streaming<LoadReport>, Status> {
        Ok(NodeStub::new(self.channel.clone()).load(LoadRequest { interval_ms }).await?.into_inner())
    }

    /// Changes of its prefix cache after a number that is known, or from 0 all that it holds.
    pub(crate) async fn prefixes(&self, ask: PrefixesRequest) -> Result<Streaming<PrefixChanges>, Status> {
        Ok(NodeStub::new(self.channel.clone()).prefixes(ask).await?.into_inner())
    }

    /// A `ModelText` by its digest, checked.
    pub(crate) async fn model_text(&self, digest: &str) -> Result<Vec<u8>, Failure> {
        let mut stub = NodeStub::new(self.channel.clone());
        let request = ModelTextRequest { digest: digest.to_owned() };
        let mut chunks = stub.model_text(request).await.map_err(|status| failure(&status))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(|status| failure(&status))? {
            if bytes.len() + chunk.data.len() > MAX_TEXT_BYTES {
                return Err(Failure::new(ErrorCode::PeerLost, "a node sent a model text that is too long"));
            }
            bytes.extend_from_slice(&chunk.data);
        }
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            return Err(Failure::new(ErrorCode::PeerLost, "a node sent a model text of another digest"));
        }
        Ok(bytes)
    }
}

/// Who a node says it is.
fn told(answer: Result<Response<NodeDescription>, Status>) -> Result<NodeInfo, DescribeError> {
    Ok(serde_json::from_str(&answer.map_err(Box::new)?.into_inner().info_json)?)
}

/// A gRPC status in our words. Its message may name addresses: it is logged, not passed on.
pub(crate) fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::InvalidArgument => Failure::new(ErrorCode::InvalidRequest, "a node found the request invalid"),
        Code::ResourceExhausted => Failure::new(ErrorCode::Overloaded, "a node has no room"),
        Code::Unimplemented => Failure::new(ErrorCode::Internal, "a node does not offer what was asked"),
        _ => Failure::new(ErrorCode::PeerLost, "the stream to a node broke"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_is_dialled() {
        let client = |addr| NodeClient::new(&Trust::none(), addr, &BTreeSet::from([Role::Decode]));
        assert!(client("127.0.0.1:80").is_ok());
        assert!(client("[::1]:80").is_ok());
        assert!(matches!(client("10.0.0.1:80"), Err(ReachError::NoCertificates { .. })));
        assert!(matches!(client("host:80"), Err(ReachError::Malformed { .. })));
    }
}
