//! OpenAI's Responses: a call, its answer as items, and answers that are kept to go on from.
//!
//! - [`body`]: what a call may hold; [`input`]: what is said, as messages
//! - [`reply`]: the answer, whole and as events; [`items`]: what it consists of
//! - [`store`]: answers that are kept
//! - [`described`]: all of it for the OpenAPI document

mod body;
mod described;
mod input;
mod items;
mod reply;
mod store;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

pub use described::operations;
pub use store::{ResponseLimits, Responses};

use crate::{Config, ask::Call, calls::Ticket, error::ApiError, files::Deleted, routes::Room};

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new().route("/v1/responses", post(create)).route("/v1/responses/{id}", get(one).delete(delete))
}

/// Reads a body; what it goes on from is looked up.
///
/// # Errors
/// What is wrong with it.
pub fn read(
    object: Map<String, Value>,
    config: &Config,
    kept: &Arc<Responses>,
    tenant: &str,
) -> Result<Call, ApiError> {
    body::read(object, config)?.call(kept, tenant)
}

/// Whether the answer to a body is kept here, or goes on from one that is.
pub fn is_kept(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Keeping {
        store: Option<bool>,
        previous_response_id: Option<IgnoredAny>,
    }
    // What cannot be read is refused wherever it is.
    serde_json::from_slice::<Keeping>(body)
        .is_ok_and(|body| body.store != Some(false) || body.previous_response_id.is_some())
}

async fn create(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let asked = room.desk.read(request, body::read).await?;
    let call = asked.call(&room.shelves.responses, &ticket.tenant.name)?;
    room.desk.answer(ticket, call).await
}

async fn one(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match room.shelves.responses.get(&ticket.tenant.name, &id) {
        Some(kept) => Ok(Json(&kept.response).into_response()),
        None => Err(ApiError::Absent { what: "response", id }),
    }
}

async fn delete(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if !room.shelves.responses.remove(&ticket.tenant.name, &id) {
        return Err(ApiError::Absent { what: "response", id });
    }
    Ok(Json(Deleted { id: &id, object: "response", deleted: true }).into_response())
}
