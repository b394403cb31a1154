//! The routes and words of Text Generation Inference.
//!
//! - [`generate`]: what a call may hold; [`reply`]: its answer
//! - [`tokenize`]: `/tokenize`, for bodies with `inputs`
//! - [`error`]: how it refuses; [`described`]: all of it for the OpenAPI document

mod described;
mod error;
mod generate;
mod reply;
mod tokenize;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

pub use described::{GenerateBody, TgiTokenizeBody, operations};
pub use error::{ErrorBody, response as refusal};
pub use generate::read;
pub use reply::Generated;
pub use tokenize::{Place, TokenizeCall, tokenized};

use crate::{
    ask::Call,
    calls::{Read, Ticket},
    error::ApiError,
    routes::Room,
};

/// The routes that are TGI's alone. [`crossroads`](crate::crossroads) has the others.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        // Its own clients post here.
        .route("/", post(either))
        .route("/generate_stream", post(stream))
        .route("/info", get(info))
}

async fn either(room: State<Arc<Room>>, ticket: Extension<Ticket>, request: Request<Body>) -> Response {
    answer(room, ticket, request, generate::read_either).await
}

async fn stream(room: State<Arc<Room>>, ticket: Extension<Ticket>, request: Request<Body>) -> Response {
    answer(room, ticket, request, generate::read_stream).await
}

async fn answer(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
    read: Read<Call>,
) -> Response {
    room.desk.serve(ticket, request, read).await.unwrap_or_else(|error| refusal(&error))
}

/// About the only model that is served.
async fn info(State(room): State<Arc<Room>>) -> Response {
    told(&room).await.unwrap_or_else(|error| refusal(&error))
}

async fn told(room: &Room) -> Result<Response, ApiError> {
    let (model, _) = room.desk.texts.of_model(None).await?;
    let config = &room.desk.config;
    let at_most = |limit: u32, most: u32| if limit == 0 { most } else { limit.min(most) };
    let max_total_tokens = at_most(config.max_total_tokens, model.longest());
    Ok(Json(json!({
        "model_id": model.name,
        "model_sha": model.fingerprint,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": config.max_connections,
        "max_best_of": config.max_choices,
        "max_stop_sequences": config.max_stop_strings,
        "max_input_tokens": at_most(config.max_input_tokens, max_total_tokens.saturating_sub(1)),
        "max_total_tokens": max_total_tokens,
        "validation_workers": config.text_threads,
        "max_client_batch_size": 1,
        "router": "baton",
        "version": env!("CARGO_PKG_VERSION"),
    }))
    .into_response())
}
