//! Paths on which two dialects meet: a field of the body says whose call it is.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::post,
};

use crate::{
    error::ApiError,
    routes::Room,
    vllm::{self, TokenizeCall},
};

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new().route("/tokenize", post(tokenize))
}

async fn tokenize(State(room): State<Arc<Room>>, request: Request<Body>) -> Result<Response, ApiError> {
    let call = room.desk.read(request, TokenizeCall::read).await?;
    vllm::tokenized(&room.desk, call).await
}
