//! Batches: files of calls, answered when there is room, into files of answers.
//!
//! - [`words`]: a batch as it is told of and kept; [`limits`]: how much there may be
//! - [`create`], [`store`]: batches that are begun, kept and given up
//! - [`work`]: a batch from its first line to its end; [`lines`]: what its file asks, [`line`](mod@line): one of
//!   them answered, [`journal`]: answers as they come
//! - [`places`]: how many lines run, so that other calls come first
//! - [`described`]: all of it for the OpenAPI document
//!
//! Answers are on disk as they come. A batch that a restart cut off goes on
//! with the lines that have no answer there.

mod create;
mod described;
mod journal;
mod limits;
mod line;
pub mod lines;
mod places;
mod store;
#[cfg(test)]
mod tests;
pub mod words;
mod work;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};

pub use described::operations;
pub use limits::BatchLimits;
pub use store::Batches;
pub use words::Batch;
pub use work::work_on_all;

use crate::{
    calls::Ticket,
    error::ApiError,
    files::{List, Paging},
    routes::Room,
};

/// Usual and greatest number of batches in a list.
const PAGE: (usize, usize) = (20, 100);

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/v1/batches", get(list).post(create))
        .route("/v1/batches/{id}", get(one))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

async fn create(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let asked = room.desk.read(request, create::read).await?;
    let batch = create::begin(&room.shelves, &ticket.tenant.name, asked).await?;
    Ok(Json(batch).into_response())
}

async fn list(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let paging = Paging::read(query, PAGE)?;
    let all = room.shelves.batches.of_tenant(&ticket.tenant.name);
    let (page, has_more) = paging.page(all, |batch, id| batch.id == id);
    let batches = page.iter().map(|kept| &kept.record.batch).collect();
    Ok(Json(List::of(batches, |batch: &&Batch| batch.id.clone(), has_more)).into_response())
}

async fn one(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let kept = room.shelves.batches.get(&ticket.tenant.name, &id)?;
    Ok(Json(&kept.batch).into_response())
}

async fn cancel(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let kept = room.shelves.batches.cancel(&ticket.tenant.name, &id).await?;
    Ok(Json(&kept.batch).into_response())
}
