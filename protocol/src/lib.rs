//! The words that Baton's rooms share. No I/O happens here.
//!
//! - [`ids`]: who and which: nodes, requests, attempts, handoffs, sessions
//! - [`request`]: a validated request, in which nothing is optional
//! - [`event`]: what an attempt sends back: tokens, ends, the bill
//! - [`kv`]: shape of the KV cache, page states, and the traits through which a transfer touches pages
//! - [`block_hash`]: the chained hash of page-sized token runs, the only one
//! - [`prefix`]: what a node's prefix cache holds, as numbered changes
//! - [`frame`]: header of one KV frame on a data path, and the digest of a handoff
//! - [`node`]: what a node says of itself in the registry; roles
//! - [`step_model`]: how long a node's steps take
//! - [`error`]: the closed set of error codes
//! - [`wire`]: generated gRPC messages and stubs, with conversions to the types above

pub mod block_hash;
pub mod error;
pub mod event;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod ids;
pub mod kv;
pub mod node;
pub mod prefix;
pub mod request;
pub mod step_model;
pub mod wire;

pub use block_hash::{BlockHash, chain};
pub use error::{ErrorCode, Failure};
pub use event::{Bill, Event, FinishReason, PromptPart, PromptToken, Token, TopLogprob};
pub use frame::{Digest, FrameHeader};
pub use ids::{HandoffId, Incarnation, NodeId, RequestId, SessionId};
pub use kv::{
    DeviceSpan, HeadShare, HeadsError, KvDtype, KvShape, KvSink, KvSource, KvSpan, PageCounts, PageState,
};
pub use node::{Intake, NodeInfo, NodeState, Role};
pub use prefix::PrefixChanges;
pub use request::{
    Budgets, Grammar, GrammarKind, LogitBias, Pooling, PromptLogprobs, Request, Sampling, Stop,
};
pub use step_model::{StepCost, StepModel};

/// Protocol versions this build speaks: the newest, and the one before it once that was released.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 2..=2;
