//! vLLM's routes beside OpenAI's. What it adds to OpenAI's bodies is read there.
//!
//! - [`tokenize`]: `/tokenize`, which [`crossroads`](crate::crossroads) routes, and `/detokenize`
//! - [`described`]: all of it for the OpenAPI document

mod described;
mod tokenize;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

pub use described::{TokenizeBody, TokenizeChatBody, Tokens, operations};
pub use tokenize::{TokenizeCall, tokenized};

use crate::{error::ApiError, routes::Room};

/// The routes that are vLLM's alone.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/detokenize", post(tokenize::detokenize))
        .route("/version", get(version))
        .route("/load", get(load))
        .route("/reset_prefix_cache", post(reset_prefix_cache))
}

async fn version() -> Response {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

/// Calls for answers that have not ended.
async fn load(State(room): State<Arc<Room>>) -> Response {
    Json(json!({ "server_load": room.metrics.answering() })).into_response()
}

async fn reset_prefix_cache(State(room): State<Arc<Room>>) -> Result<Response, ApiError> {
    room.forget_prefixes().await?;
    Ok(([(CONTENT_TYPE, "text/plain")], "").into_response())
}
