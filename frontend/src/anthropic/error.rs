//! Refusals, as Anthropic writes them.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::ApiError;

/// `{"type": "error", …}`
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicError")]
pub struct ErrorBody<'a> {
    r#type: &'static str,
    error: ErrorWords,
    request_id: &'a str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicErrorWords")]
struct ErrorWords {
    r#type: &'static str,
    message: String,
}

/// The response to a call that is not answered.
pub fn response(error: &ApiError, id: &str) -> Response {
    error.respond(Json(ErrorBody::of(error, id)).into_response())
}

// === impl ErrorBody ===

impl<'a> ErrorBody<'a> {
    /// What went wrong with the request of this id.
    pub fn of(error: &ApiError, id: &'a str) -> Self {
        let r#type = match error.status().as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        let error = ErrorWords { r#type, message: error.to_string() };
        Self { r#type: "error", error, request_id: id }
    }
}
