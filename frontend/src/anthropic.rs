//! Anthropic's routes and words.
//!
//! - [`messages`]: what a call may hold
//! - [`reply`]: its answer
//! - [`error`]: how it refuses; [`described`]: all of it for the OpenAPI document

mod described;
mod error;
mod messages;
mod reply;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    http::HeaderValue,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;

pub use described::operations;
pub use error::response as refusal;
pub use messages::read;

use crate::{calls::Ticket, error::ApiError, routes::Room};

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new().route("/v1/messages", post(messages)).route("/v1/messages/count_tokens", post(count_tokens))
}

async fn messages(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Response {
    let id = ticket.id.to_string();
    finished(room.desk.serve(ticket, request, read).await, &id)
}

async fn count_tokens(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Response {
    finished(count(&room, request).await, &ticket.id.to_string())
}

async fn count(room: &Room, request: Request<Body>) -> Result<Response, ApiError> {
    let (model, prompt) = room.desk.read(request, messages::read_count).await?;
    let tokens = room.desk.tokenize(Some(model), prompt).await?.tokens;
    Ok(Json(json!({ "input_tokens": tokens.len() })).into_response())
}

/// With the header in which Anthropic's clients look for the request's id.
fn finished(answer: Result<Response, ApiError>, id: &str) -> Response {
    let mut response = answer.unwrap_or_else(|error| error::response(&error, id));
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert("request-id", id);
    }
    response
}
