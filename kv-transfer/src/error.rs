//! Why a session or a handoff could not be had.

use baton_protocol::{ErrorCode, Failure};
use baton_trust::ReachError;

/// Why two nodes have no session, or have it no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// An address that cannot be used; without certificates nothing leaves this machine.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// Encrypted data sockets were asked for, and this process has no certificates.
    #[error(
        "transfer.tls needs certificates: make them with `baton certs init`, and name them in section [tls]"
    )]
    NoCertificates,
    /// A transport that the config names and this build has not.
    #[error("transport {transport} is not in this build: {remedy}")]
    NotBuilt {
        /// Its name.
        transport: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A transport that this machine does not have.
    #[error("transport {transport} cannot be used here: {reason}")]
    NotHere {
        /// Its name.
        transport: &'static str,
        /// Why.
        reason: String,
    },
    /// The peer was not reached, or broke off before the session was open.
    #[error("no session with {node}: {reason}")]
    Connect {
        /// The peer.
        node: String,
        /// What happened.
        reason: String,
    },
    /// The two nodes do not fit together.
    #[error("{field} differs: {mine} here, {yours} there")]
    Refused {
        /// What differs.
        field: String,
        /// On this side.
        mine: String,
        /// On the peer's side.
        yours: String,
    },
    /// The session was open and ended; it never comes back, another one may.
    #[error("session ended: {reason}")]
    Down {
        /// Why.
        reason: String,
    },
}

/// Why a handoff could not be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoffError {
    /// There is no session with the prefill node.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// An ask that no prefill node could answer.
    #[error("bad ask: {field}")]
    Ask {
        /// What is wrong.
        field: &'static str,
    },
}

// === impl SessionError ===

impl SessionError {
    pub(crate) fn down(reason: impl Into<String>) -> Self {
        Self::Down { reason: reason.into() }
    }

    /// The failure that handoffs of such a session end with.
    pub fn to_failure(&self) -> Failure {
        Failure::new(ErrorCode::PeerLost, self.to_string())
    }
}

// === impl HandoffError ===

impl From<HandoffError> for Failure {
    fn from(error: HandoffError) -> Self {
        let code = match error {
            HandoffError::Session(_) => ErrorCode::PeerLost,
            HandoffError::Ask { .. } => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
