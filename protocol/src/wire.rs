//! Generated gRPC messages and stubs, and conversions to the crate's own types.
//! Everything that comes from a peer is checked here, once.
//!
//! - `node`, `request`, `event`: what is said in which direction

use std::time::Duration;

use crate as own;

mod event;
mod node;
mod request;

#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
mod generated {
    tonic::include_proto!("baton.v1");
}
pub use generated::*;

/// A message that a peer of this protocol does not send.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {field}")]
pub struct Malformed {
    /// What was missing or out of range.
    pub field: &'static str,
}

const fn missing(field: &'static str) -> Malformed {
    Malformed { field }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === HandoffId ===

impl From<own::HandoffId> for HandoffId {
    fn from(id: own::HandoffId) -> Self {
        Self { request: id.request.to_bytes().to_vec().into(), attempt: id.attempt, leg: id.leg }
    }
}

impl TryFrom<HandoffId> for own::HandoffId {
    type Error = Malformed;

    fn try_from(id: HandoffId) -> Result<Self, Malformed> {
        let request = own::RequestId::from_bytes(&id.request).ok_or(missing("handoff id"))?;
        Ok(Self { request, attempt: id.attempt, leg: id.leg })
    }
}

// === KvShape ===

impl From<&own::KvShape> for KvShape {
    fn from(shape: &own::KvShape) -> Self {
        Self {
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype.as_str().to_owned(),
            page_tokens: shape.page_tokens,
        }
    }
}

impl TryFrom<&KvShape> for own::KvShape {
    type Error = Malformed;

    fn try_from(shape: &KvShape) -> Result<Self, Malformed> {
        let within = |value: u32, max: u32| (1..=max).contains(&value);
        if !within(shape.layers, 1024) || !within(shape.kv_heads, 1024) || !within(shape.head_dim, 4096) {
            return Err(missing("kv shape"));
        }
        if !within(shape.page_tokens, 1024) {
            return Err(missing("page tokens"));
        }
        Ok(Self {
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype.parse().map_err(|_| missing("kv dtype"))?,
            page_tokens: shape.page_tokens,
        })
    }
}
