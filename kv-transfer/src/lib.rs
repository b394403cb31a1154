//! Moves KV pages between memories.
//!
//! A decode node asks a prefill node for the KV of a prompt; the pages come as
//! frames while the prompt is being computed. The receiver decides where frames
//! land, checks every one, and nothing is used before all are in and right.
//!
//! - [`handoff`]: the two state machines of one handoff, without I/O; what a caller sees of it
//! - [`transport`]: how frames travel: in process, shared memory, TCP; decorators that disturb and that measure
//! - [`session`]: a pair of nodes: control stream, data path, liveness; both ends' drivers
//! - [`prefiller`]: what the sending side needs from an engine
//! - [`config`]: what a person may set; who the local node is
//! - [`metrics`]: what was moved, how long it took, what went wrong
//! - [`error`]: why a session or a handoff could not be had

pub mod config;
pub mod error;
pub mod handoff;
pub mod metrics;
pub mod prefiller;
pub mod session;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "tests need more of it than the fuzzer"))]
mod testing;
pub mod transport;

pub use config::{FaultsConfig, LocalNode, StandIn, TransferConfig, TransportKind, Wanted};
pub use error::{HandoffError, SessionError};
pub use handoff::{HandoffAsk, HandoffEvent, HandoffStats, Landing, returned::Returned};
pub use metrics::TransferMetrics;
pub use prefiller::{BusyReason, PrefillGuard, PrefillJob, Prefiller, Progress, Queue};
pub use session::{Handoff, KvPeer, PathReport, PrefillService, SessionReport, Sessions, Tried, UnderWay};

/// Bytes as two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
