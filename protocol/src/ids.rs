//! Identifiers. All are made by the cluster, never taken from a client.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One user call, 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u128);

/// A node's name within its cluster, for example `decode-2`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

/// Random at process start: a node that restarts is another incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A pair of nodes from HELLO until either side ends it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// One passage of KV: which request, which attempt of it, and which of the
/// PREFILLs that the decode node has sent within that attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandoffId {
    /// The request.
    pub request: RequestId,
    /// Counted by the coordinator, from 0.
    pub attempt: u32,
    /// Counted by the decode node, from 0.
    pub leg: u32,
}

// === impl RequestId ===

impl RequestId {
    /// Reads 16 big-endian bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
    }

    /// 16 big-endian bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl NodeId ===

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeId {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

// === impl HandoffId ===

impl HandoffId {
    /// 64 bits for the digest of open handoffs (xor over the open ones).
    pub fn fold(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.request.to_bytes());
        hasher.update(&self.attempt.to_le_bytes());
        hasher.update(&self.leg.to_le_bytes());
        let mut first = [0u8; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Display for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.request, self.attempt, self.leg)
    }
}
