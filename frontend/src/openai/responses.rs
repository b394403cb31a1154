//! OpenAI's Responses: a call, its answer as items, and answers that are kept to go on from.
//!
//! - [`body`]: what a call may hold; [`input`]: what is said, as messages; [`given`]: the same as items
//! - [`reply`]: the answer, whole and as events; [`items`]: what it consists of
//! - [`store`]: answers that are kept
//! - [`described`]: all of it for the OpenAPI document

mod body;
mod described;
mod given;
mod input;
mod items;
mod reply;
mod store;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};

pub use described::operations;
pub use store::{ResponseLimits, Responses};

use self::store::KeptResponse;
use crate::{
    Config,
    ask::{Ask, Call},
    calls::Ticket,
    error::ApiError,
    files::{Deleted, List, Paging},
    routes::Room,
};

/// Items of a list if nothing is said, and at most.
const PAGE: (usize, usize) = (20, 100);

/// What a call would cost.
#[derive(Serialize, JsonSchema)]
pub struct InputTokens {
    object: &'static str,
    input_tokens: usize,
}

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/v1/responses", post(create))
        .route("/v1/responses/input_tokens", post(count))
        .route("/v1/responses/{id}", get(one).delete(delete))
        .route("/v1/responses/{id}/cancel", post(cancel))
        .route("/v1/responses/{id}/input_items", get(input_items))
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

/// How many tokens a call would have.
async fn count(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let asked = room.desk.read(request, body::read_count).await?;
    let Ask { model, prompts, .. } = asked.call(&room.shelves.responses, &ticket.tenant.name)?.ask;
    let mut input_tokens = 0;
    for prompt in prompts {
        input_tokens += room.desk.tokenize(model.clone(), prompt).await?.tokens.len();
    }
    Ok(Json(InputTokens { object: "response.input_tokens", input_tokens }).into_response())
}

async fn one(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    // Events are told once, and what may be included is there.
    if let Some(param) = query.into_keys().next() {
        return Err(ApiError::Unsupported { param });
    }
    Ok(Json(&kept(&room, &ticket, id)?.response).into_response())
}

async fn input_items(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let paging = Paging::read(query, PAGE)?;
    let kept = kept(&room, &ticket, id.clone())?;
    let newest_first = given::listed(&kept.given, &id).into_iter().rev().collect();
    let (page, has_more) = paging.page(newest_first, |item: &Value, id| item["id"] == id);
    let id = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    Ok(Json(List::of(page, id, has_more)).into_response())
}

/// What is answered at once cannot be given up later.
async fn cancel(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    kept(&room, &ticket, id)?;
    let message = "only responses made with `background` could be cancelled, and none are made so";
    Err(ApiError::Conflict { message: message.to_owned() })
}

fn kept(room: &Room, ticket: &Ticket, id: String) -> Result<Arc<KeptResponse>, ApiError> {
    let kept = room.shelves.responses.get(&ticket.tenant.name, &id);
    kept.ok_or(ApiError::Absent { what: "response", id })
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
