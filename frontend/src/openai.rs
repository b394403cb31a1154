//! OpenAI's routes and words, with what vLLM adds to them.
//!
//! - [`chat`], [`completions`]: what the two calls may hold, with [`parameters`] that they share
//! - [`messages`]: the messages of a chat
//! - [`chat_reply`], [`completions_reply`]: answers, in [`shapes`] with [`logprobs`] and [`usage`]
//! - [`responses`]: the newer way to ask; [`embeddings`]: vectors in place of answers
//! - [`models`]: what is served; [`described`]: all of it for the OpenAPI document

mod chat;
mod chat_reply;
mod completions;
mod completions_reply;
mod described;
pub mod embeddings;
mod logprobs;
mod messages;
mod models;
mod parameters;
pub mod responses;
mod shapes;
mod usage;

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};

pub use chat::read as read_chat;
pub use completions::read as read_completion;
pub use described::{OneOrMore, Turn, operations};
pub use logprobs::finite;
pub use messages::{read_conversation, read_text};
pub use parameters::{at_least_one, sampling, seed, stop_strings, stop_token_ids, token_ids};

use crate::{calls::Ticket, error::ApiError, routes::Room};

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings::make))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
}

async fn chat(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    room.desk.serve(ticket, request, chat::read).await
}

async fn completions(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    room.desk.serve(ticket, request, completions::read).await
}
