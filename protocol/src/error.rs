//! The closed set of error codes, mapped once to HTTP (frontend) and to gRPC.

use std::{fmt, str::FromStr, time::Duration};

/// What went wrong, as far as callers decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is malformed or out of range. Never retried.
    InvalidRequest,
    /// No such model.
    UnknownModel,
    /// No room now; try again after the given time.
    Overloaded,
    /// No node can serve this now.
    Unavailable,
    /// The deadline passed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The node has another role epoch.
    Moved,
    /// A peer was lost, or its data could not be repaired; another attempt may help.
    PeerLost,
    /// A fault of this program.
    Internal,
}

/// A code with words for a person. The message holds no path, address or secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What callers decide by.
    pub code: ErrorCode,
    /// For a person; lowercase, no full stop.
    pub message: String,
    /// When to try again, if trying again can help.
    pub retry_after: Option<Duration>,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 9] = [
        Self::InvalidRequest,
        Self::UnknownModel,
        Self::Overloaded,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Moved,
        Self::PeerLost,
        Self::Internal,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::UnknownModel => "unknown_model",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Moved => "moved",
            Self::PeerLost => "peer_lost",
            Self::Internal => "internal",
        }
    }

    /// Whether another attempt on another node can help.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Overloaded | Self::Unavailable | Self::Moved | Self::PeerLost)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorCode {
    type Err = UnknownCode;

    fn from_str(name: &str) -> Result<Self, UnknownCode> {
        Self::ALL.into_iter().find(|code| code.as_str() == name).ok_or_else(|| UnknownCode(name.to_owned()))
    }
}

/// A code that this build does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown error code {0:?}")]
pub struct UnknownCode(pub String);

impl Failure {
    /// A failure with this code and message, without advice on retrying.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }
}
