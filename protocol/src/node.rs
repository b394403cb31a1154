//! What a node says of itself.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ErrorCode, Failure, Incarnation, KvDtype, KvShape, NodeId};

/// What a node admits. Every node can do both kinds of work; a role is an admission policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Routes requests and serves the API.
    Coordinator,
    /// Runs prompts.
    Prefill,
    /// Generates tokens.
    Decode,
}

/// Whether a node takes new work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Takes work.
    Ready,
    /// Finishes what it has.
    Draining,
}

/// Whether a node takes new work of one kind. What it has it finishes in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intake {
    /// Takes it.
    #[default]
    Open,
    /// It is another role's.
    Moved,
    /// Takes no work at all.
    Closed,
}

/// A node's entry in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub id: NodeId,
    /// Random at process start.
    pub incarnation: Incarnation,
    /// What it admits.
    pub roles: BTreeSet<Role>,
    /// Counts role changes.
    pub epoch: u64,
    /// gRPC address, `host:port`.
    pub control_addr: String,
    /// Name of the model it serves.
    pub model: String,
    /// Weights and shape in one hash; only equal ones hand off to each other.
    pub model_fingerprint: String,
    /// Digest under which it serves tokenizer and template.
    pub text_digest: String,
    /// Longest sequence, in tokens.
    pub context_tokens: u32,
    /// Shape of its KV cache.
    pub kv: KvShape,
    /// Pages of its pool.
    pub pages: u64,
    /// Whether it takes new work.
    pub state: NodeState,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Coordinator, Self::Prefill, Self::Decode];

    /// Its name in config and flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// Not a role.
#[derive(Debug, thiserror::Error)]
#[error("unknown role {0:?}, expected coordinator, prefill or decode")]
pub struct UnknownRole(pub String);

impl Intake {
    /// Why new work is not taken, if it is not.
    pub fn refusal(self) -> Option<Failure> {
        match self {
            Self::Open => None,
            Self::Moved => Some(Failure::new(ErrorCode::Moved, "the node has another role")),
            Self::Closed => Some(Failure::new(ErrorCode::Unavailable, "the node is draining")),
        }
    }
}

impl NodeInfo {
    /// Of a node that routes and does nothing else: it has no model and no pages.
    pub fn routing(id: NodeId, incarnation: Incarnation, control_addr: String) -> Self {
        Self {
            id,
            incarnation,
            roles: [Role::Coordinator].into(),
            epoch: 0,
            control_addr,
            model: String::new(),
            model_fingerprint: String::new(),
            text_digest: String::new(),
            context_tokens: 0,
            kv: KvShape { layers: 0, kv_heads: 0, head_dim: 0, dtype: KvDtype::F32, page_tokens: 0 },
            pages: 0,
            state: NodeState::Ready,
        }
    }

    /// Whether it routes and does nothing else.
    pub fn only_routes(&self) -> bool {
        self.roles.iter().eq([&Role::Coordinator])
    }

    /// Whether KV of one node can be used by the other.
    pub fn can_hand_off_to(&self, other: &Self) -> bool {
        let (a, b) = (&self.kv, &other.kv);
        self.model_fingerprint == other.model_fingerprint
            && (a.layers, a.kv_heads, a.head_dim, a.dtype) == (b.layers, b.kv_heads, b.head_dim, b.dtype)
    }
}
