//! Why a sequence was not taken, or the engine stopped.

use std::time::Duration;

use baton_protocol::{ErrorCode, Failure};

use crate::{backend::BackendError, kv::IntegrityError};

/// A sequence that was not taken. Its pages have been let go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many wait already.
    #[error("{waiting} requests wait already, at most {limit}")]
    Overloaded {
        /// How many wait.
        waiting: usize,
        /// How many may.
        limit: usize,
    },
    /// It could never run.
    #[error("{0}")]
    Invalid(String),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// The engine stopped: every sequence was told, nothing more runs.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend's device failed.
    #[error("step failed")]
    Backend(#[source] BackendError),
    /// The pool's books are wrong.
    #[error("page pool is inconsistent")]
    Integrity(#[source] IntegrityError),
    /// It stopped earlier.
    #[error("the engine has stopped")]
    Stopped,
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        let (code, retry_after) = match error {
            SubmitError::Overloaded { .. } => (ErrorCode::Overloaded, Some(Duration::from_secs(1))),
            SubmitError::Invalid(_) => (ErrorCode::InvalidRequest, None),
            SubmitError::Stopped => (ErrorCode::Unavailable, None),
        };
        Self { code, message: error.to_string(), retry_after }
    }
}
