//! How the admin API refuses.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE},
    response::{IntoResponse, Response},
};
use baton_coordinator::{LimitsError, SteerError};
use baton_trust::Rank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error(transparent)]
    Limits(#[from] LimitsError),
    #[error("no node {id:?}")]
    NoNode { id: String },
    #[error("no request {id:?} is in flight")]
    NoRequest { id: String },
    #[error("the body cannot be read: {reason}")]
    Body { reason: String },
    #[error("neither pages of others nor other names of this machine may call")]
    Stranger,
    #[error("a key for operators is needed: `Authorization: Bearer` with one of admin.keys_file")]
    NoKey,
    #[error("that takes a key of rank {needed}, and this one's is {has}")]
    Rank { needed: Rank, has: Rank },
    #[error("nothing was done, since it cannot be written into the file of acts: {reason}")]
    Unwritten { reason: String },
    #[error("it was done, and what came of it cannot be written into the file of acts: {reason}")]
    Unrecorded { reason: String },
    #[error("too many acts are under way")]
    Busy,
    #[error("the coordinator ended before it was done")]
    Ended,
    #[error("this coordinator has no playground")]
    NoPlayground,
    #[error("no such route; /openapi.json has all of them")]
    NoRoute,
}

/// The body of a refusal.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Why, for a person.
    pub error: String,
}

impl AdminError {
    /// Whether it was based on what was changed meanwhile.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Limits(LimitsError::Stale { .. }))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Steer(SteerError::Unknown { .. })
            | Self::NoNode { .. }
            | Self::NoRequest { .. }
            | Self::NoPlayground
            | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Steer(SteerError::Last { .. } | SteerError::Refused { .. })
            | Self::Limits(LimitsError::Stale { .. }) => StatusCode::CONFLICT,
            Self::Stranger | Self::Rank { .. } => StatusCode::FORBIDDEN,
            Self::NoKey => StatusCode::UNAUTHORIZED,
            Self::Steer(SteerError::Unreached { .. }) => StatusCode::BAD_GATEWAY,
            Self::Unwritten { .. } | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unrecorded { .. } | Self::Ended => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Limits(LimitsError::Range { .. }) | Self::Body { .. } => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(Refusal { error: self.to_string() })).into_response();
        if matches!(self, Self::NoKey) {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
