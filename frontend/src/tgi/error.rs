//! Refusals, as TGI writes them.

use axum::{Json, http::StatusCode, response::Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::ApiError;

/// `{"error": …, "error_type": …}`
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TgiError")]
pub struct ErrorBody {
    error: String,
    error_type: &'static str,
}

/// The response to a call that is not answered.
pub fn response(error: &ApiError) -> Response {
    let mut response = error.respond(Json(ErrorBody::of(error)));
    if response.status() == StatusCode::BAD_REQUEST {
        *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    response
}

// === impl ErrorBody ===

impl ErrorBody {
    /// What went wrong.
    pub fn of(error: &ApiError) -> Self {
        let error_type = match error.status().as_u16() {
            401 => "authentication",
            429 | 503 => "overloaded",
            500.. => "generation",
            _ => "validation",
        };
        Self { error: error.to_string(), error_type }
    }
}
