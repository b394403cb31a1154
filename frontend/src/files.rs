//! Files that tenants send, and that batches make for them.
//!
//! - [`store`]: what is kept; [`expiry`]: for how long
//! - [`upload`], [`download`]: on their way in and out
//! - [`paging`]: lists, a part at a time
//! - [`described`]: all of it for the OpenAPI document

mod described;
mod download;
mod expiry;
mod paging;
mod store;
#[cfg(test)]
pub mod tests;
pub mod upload;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use schemars::JsonSchema;
use serde::Serialize;

pub use described::{operations, paging};
pub use expiry::Expiry;
pub use paging::{List, Paging};
pub use store::{Files, StoredFile};
pub use upload::blocking;

use crate::{calls::Ticket, error::ApiError, routes::Room};

/// What a file is for.
pub const INPUT: &str = "batch";

/// What a batch made.
pub const OUTPUT: &str = "batch_output";

/// A file as it is told of.
#[derive(Serialize, JsonSchema)]
pub struct FileWords<'a> {
    id: &'a str,
    object: &'static str,
    bytes: u64,
    /// Seconds since 1970.
    created_at: u64,
    expires_at: u64,
    filename: &'a str,
    purpose: &'a str,
    status: &'static str,
}

/// That something is no more.
#[derive(Serialize, JsonSchema)]
pub struct Deleted<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub deleted: bool,
}

/// Most files of one page.
const MAX_PAGE: usize = 10_000;

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new()
        .route("/v1/files", get(list).post(create))
        .route("/v1/files/{id}", get(one).delete(delete))
        .route("/v1/files/{id}/content", get(content))
}

async fn create(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let tenant = &ticket.tenant.name;
    let (id, file) = upload::receive(request, &room.shelves.files, tenant, &room.desk.config).await?;
    room.shelves.files.add(tenant, &id, file.clone()).await;
    Ok(Json(FileWords::of(&id, &file)).into_response())
}

async fn list(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let purpose = query.remove("purpose");
    let paging = Paging::read(query, (MAX_PAGE, MAX_PAGE))?;
    let mut files = room.shelves.files.of_tenant(&ticket.tenant.name);
    files.retain(|file| purpose.as_ref().is_none_or(|purpose| file.record.purpose == *purpose));
    let (page, has_more) = paging.page(files, |file, id| file.id == id);
    let words = page.iter().map(|file| FileWords::of(&file.id, &file.record)).collect();
    Ok(Json(List::of(words, |file: &FileWords<'_>| file.id.to_owned(), has_more)).into_response())
}

async fn one(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let file = room.shelves.files.get(&ticket.tenant.name, &id)?;
    Ok(Json(FileWords::of(&id, &file)).into_response())
}

async fn content(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    room.shelves.files.get(&ticket.tenant.name, &id)?;
    download::response(room.shelves.files.content(&id)).await
}

async fn delete(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let tenant = &ticket.tenant.name;
    room.shelves.files.get(tenant, &id)?;
    if room.shelves.batches.reads(&id) {
        let message = format!("file `{id}` is read by a batch that is not finished");
        return Err(ApiError::Conflict { message });
    }
    room.shelves.files.remove(|file| file.id == id);
    Ok(Json(Deleted { id: &id, object: "file", deleted: true }).into_response())
}

// === impl FileWords ===

impl<'a> FileWords<'a> {
    fn of(id: &'a str, file: &'a StoredFile) -> Self {
        Self {
            id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created,
            expires_at: file.expires,
            filename: &file.filename,
            purpose: &file.purpose,
            status: "processed",
        }
    }
}
