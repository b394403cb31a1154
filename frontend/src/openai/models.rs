//! What is served, in OpenAI's shape.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use baton_coordinator::ServedModel;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{error::ApiError, routes::Room};

/// A model.
#[derive(Serialize, JsonSchema)]
pub struct ModelWords<'a> {
    id: &'a str,
    object: &'static str,
    /// When this process started: seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// vLLM's clients look here.
    max_model_len: u32,
}

/// All of them.
#[derive(Serialize, JsonSchema)]
pub struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelWords<'a>>,
}

/// `/v1/models`
pub async fn list(State(room): State<Arc<Room>>) -> Response {
    let served = room.desk.dispatch.models();
    let data = served.iter().map(|model| ModelWords::of(model, &room)).collect();
    Json(ModelList { object: "list", data }).into_response()
}

/// `/v1/models/{id}`
pub async fn one(State(room): State<Arc<Room>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let served = room.desk.dispatch.models();
    match served.iter().find(|model| model.name == id) {
        Some(model) => Ok(Json(ModelWords::of(model, &room)).into_response()),
        None => Err(ApiError::UnknownModel { model: id }),
    }
}

// === impl ModelWords ===

impl<'a> ModelWords<'a> {
    fn of(model: &'a ServedModel, room: &Room) -> Self {
        Self {
            id: &model.name,
            object: "model",
            created: room.started,
            owned_by: "baton",
            max_model_len: model.longest(),
        }
    }
}
