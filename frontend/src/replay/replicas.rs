//! Which coordinator keeps the answer to a call, and how the others ask it.
//!
//! It is the one whose name, hashed together with the call's, comes out
//! highest. When coordinators come and go, only their own share of calls moves,
//! from and to whoever is next; so whoever keeps a call that is new to it asks
//! the next one first whether it was made there. A keeper out of reach is not
//! replaced before the registry has given it up: its calls would be computed twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use baton_protocol::{
    NodeId, NodeInfo, Role,
    wire::{AnswerHead, AnswerPart, HttpHeader, KeyedCall, answer_part::Part, replica_client::ReplicaClient},
};
use baton_trust::{Listener, ReachError, Trust};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Status, Streaming, transport::Channel};
use tracing::warn;

use super::digest;
use crate::error::ApiError;

/// The coordinators of a cluster, seen by one of them.
pub struct Replicas {
    own: NodeId,
    trust: Trust,
    members: watch::Receiver<BTreeMap<NodeId, NodeInfo>>,
    /// By address.
    channels: Mutex<HashMap<String, Channel>>,
}

/// This coordinator among others, and where they ask it.
pub struct Seat {
    /// Its name.
    pub own: NodeId,
    /// Certificates of this process.
    pub trust: Trust,
    /// The nodes of the cluster; those that only route are coordinators.
    pub members: watch::Receiver<BTreeMap<NodeId, NodeInfo>>,
    /// Where it is asked.
    pub listener: Listener,
}

/// How long a coordinator may take to say that it has heard.
const HEARING: Duration = Duration::from_secs(2);

/// Headers of a connection or of its caller, not of a call.
const NOT_PASSED_ON: [HeaderName; 7] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::HOST,
    header::TRANSFER_ENCODING,
];

// === impl Seat ===

impl Seat {
    /// Whom it sees.
    pub(crate) fn replicas(&self) -> Replicas {
        Replicas::new(self.own.clone(), self.trust.clone(), self.members.clone())
    }
}

// === impl Replicas ===

impl Replicas {
    /// Of a coordinator that sits there.
    pub fn new(own: NodeId, trust: Trust, members: watch::Receiver<BTreeMap<NodeId, NodeInfo>>) -> Self {
        Self { own, trust, members, channels: Mutex::default() }
    }

    /// Of the only one.
    pub fn alone() -> Self {
        Self::new("alone".into(), Trust::none(), watch::channel(BTreeMap::new()).1)
    }

    /// The answer to a call of this name, if another coordinator keeps it or has it. `was_sent`
    /// says that it comes from another one already, to be answered here.
    ///
    /// # Errors
    /// When its keeper is out of reach.
    pub async fn answer(
        &self,
        name: &str,
        call: impl FnOnce() -> KeyedCall,
        was_sent: bool,
    ) -> Result<Option<Response>, ApiError> {
        let ranked = ranked(name, self.names());
        let Some(first) = ranked.iter().find(|id| **id != self.own) else { return Ok(None) };
        if !was_sent && ranked.first() == Some(first) {
            return match self.ask(first, call()).await {
                Ok(response) => Ok(Some(response)),
                Err(error) => {
                    warn!(keeper = %first, %error, "a call with an Idempotency-Key is refused");
                    Err(ApiError::KeeperLost)
                }
            };
        }
        match self.ask(first, KeyedCall { if_known: true, ..call() }).await {
            Ok(response) => Ok(Some(response)),
            Err(error) => {
                if error.code() != Code::NotFound {
                    warn!(next = %first, %error, "not known whether a call was made there before");
                }
                Ok(None)
            }
        }
    }

    /// Coordinators that are announced, and this one.
    fn names(&self) -> BTreeSet<NodeId> {
        let members = self.members.borrow();
        let others = members.values().filter(|info| info.only_routes()).map(|info| info.id.clone());
        others.chain([self.own.clone()]).collect()
    }

    async fn ask(&self, id: &NodeId, call: KeyedCall) -> Result<Response, Status> {
        let known = self.members.borrow().get(id).map(|info| info.control_addr.clone());
        let addr = known.ok_or_else(|| Status::unavailable("it has left"))?;
        let channel = self.channel(&addr).map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = ReplicaClient::new(channel);
        let heard = timeout(HEARING, client.answer(call)).await;
        let parts = heard.map_err(|_| Status::deadline_exceeded("it does not answer"))??.into_inner();
        response(parts).await
    }

    fn channel(&self, addr: &str) -> Result<Channel, ReachError> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(addr) {
            return Ok(channel.clone());
        }
        let channel = self
            .trust
            .callee(addr, &[Role::Coordinator].into())?
            .with(|endpoint| {
                endpoint
                    .connect_timeout(HEARING)
                    .http2_keep_alive_interval(Duration::from_secs(10))
                    .keep_alive_timeout(Duration::from_secs(10))
            })
            .connect_lazy();
        let announced: BTreeSet<_> =
            self.members.borrow().values().map(|info| info.control_addr.clone()).collect();
        channels.retain(|addr, _| announced.contains(addr));
        channels.insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Who keeps a call, then who would if that one left, and so on.
fn ranked(name: &str, replicas: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut ranked: Vec<_> = replicas.into_iter().collect();
    ranked.sort_by_cached_key(|id| std::cmp::Reverse(digest(&[id.0.as_bytes(), name.as_bytes()])));
    ranked
}

/// An answer from its parts; its head has come when this is ready.
async fn response(mut parts: Streaming<AnswerPart>) -> Result<Response, Status> {
    let first = parts.message().await?.and_then(|part| part.part);
    let Some(Part::Head(AnswerHead { status, headers })) = first else {
        return Err(Status::internal("an answer without a head"));
    };
    let body = parts.map(|part| match part?.part {
        Some(Part::Body(bytes)) => Ok(bytes),
        _ => Err(Status::internal("an answer with two heads")),
    });
    let mut response = Response::new(Body::from_stream(body));
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    *response.status_mut() = status.ok_or_else(|| Status::internal("no status"))?;
    *response.headers_mut() = read_headers(headers);
    Ok(response)
}

/// Headers in the words of the wire.
pub fn write_headers(headers: &HeaderMap) -> Vec<HttpHeader> {
    let passed = headers.iter().filter(|(name, _)| !NOT_PASSED_ON.contains(name));
    let written = passed.map(|(name, value)| HttpHeader {
        name: name.as_str().to_owned(),
        value: bytes::Bytes::copy_from_slice(value.as_bytes()),
    });
    written.collect()
}

/// Headers from the words of the wire; what cannot be one is left out.
pub fn read_headers(headers: Vec<HttpHeader>) -> HeaderMap {
    let read = headers.into_iter().filter_map(|HttpHeader { name, value }| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::from_maybe_shared(value).ok()?))
    });
    read.collect()
}

/// Longest part of a body on the wire.
const PART_BYTES: usize = 1 << 20;

/// An answer as parts.
pub fn parts(response: Response) -> impl futures::Stream<Item = Result<AnswerPart, Status>> + Send {
    let (head, body) = response.into_parts();
    let status = u32::from(head.status.as_u16());
    let head = Part::Head(AnswerHead { status, headers: write_headers(&head.headers) });
    let body = body.into_data_stream().map_err(|_| Status::aborted("the answer broke off"));
    let body = body.map_ok(|mut bytes| {
        let cut = std::iter::from_fn(move || {
            (!bytes.is_empty()).then(|| Ok(Part::Body(bytes.split_to(bytes.len().min(PART_BYTES)))))
        });
        stream::iter(cut)
    });
    let parts = stream::iter([Ok(head)]).chain(body.try_flatten());
    parts.map_ok(|part| AnswerPart { part: Some(part) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<NodeId> {
        (0..count).map(|i| NodeId(format!("coordinator-{i}"))).collect()
    }

    #[test]
    fn every_coordinator_keeps_its_share() {
        let mut shares = HashMap::new();
        for call in 0..3000 {
            *shares.entry(ranked(&call.to_string(), names(3))[0].clone()).or_insert(0) += 1;
        }
        assert!(shares.len() == 3 && shares.values().all(|share| (850..1150).contains(share)), "{shares:?}");
    }

    #[test]
    fn who_leaves_hands_its_calls_to_the_next_and_moves_no_other() {
        for call in 0..200 {
            let name = call.to_string();
            let before = ranked(&name, names(4));
            for gone in names(4) {
                let after = ranked(&name, names(4).into_iter().filter(|id| *id != gone));
                let expected: Vec<_> = before.iter().filter(|id| **id != gone).cloned().collect();
                assert_eq!(after, expected);
            }
        }
    }
}
