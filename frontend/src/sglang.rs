//! SGLang's routes and words.
//!
//! - [`generate`]: what a call may hold; [`reply`]: its answer; [`described`]: both for the OpenAPI document

mod described;
mod generate;
mod reply;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

pub use described::{SglangBody, operations};
pub use generate::read;
pub use reply::Answer;

use crate::{calls::Ticket, error::ApiError, routes::Room};

/// The routes that are SGLang's alone. [`crossroads`](crate::crossroads) has the others.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/get_model_info", get(model_info))
        .route("/model_info", get(model_info))
        .route("/health_generate", get(health_generate))
        .route("/flush_cache", post(flush_cache))
}

/// About the only model that is served.
async fn model_info(State(room): State<Arc<Room>>) -> Result<Response, ApiError> {
    let (model, _) = room.desk.texts.of_model(None).await?;
    Ok(Json(json!({
        "model_path": model.name,
        "tokenizer_path": model.name,
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": model.fingerprint,
    }))
    .into_response())
}

/// Whether a token comes out, of the first model that is served.
async fn health_generate(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
) -> Result<Response, ApiError> {
    let model = room.desk.dispatch.models().into_iter().next().map(|model| model.name);
    room.desk.answer(ticket, generate::one_token(model)).await
}

async fn flush_cache(State(room): State<Arc<Room>>) -> Result<Response, ApiError> {
    room.forget_prefixes().await?;
    Ok(([(CONTENT_TYPE, "text/plain")], "Cache flushed.\n").into_response())
}
