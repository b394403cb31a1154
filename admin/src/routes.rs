//! Which path does what.

use std::net::IpAddr;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request as Call, State},
    http::{
        HeaderMap,
        header::{HOST, ORIGIN},
    },
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use baton_coordinator::Coordinator;
use serde::de::DeserializeOwned;

use crate::{
    error::AdminError,
    openapi, operations,
    views::{Advice, Cluster, Drain, Flushed, Incident, Limits, Node, PrefixIndex, Queue, Request, Road},
};

type Answer<T> = Result<Json<T>, AdminError>;

/// Longest body.
const MAX_BODY_BYTES: usize = 64 << 10;

/// All routes over a coordinator.
pub fn router(coordinator: Coordinator) -> Router {
    Router::new()
        .route("/admin/v1/cluster", get(cluster))
        .route("/admin/v1/nodes", get(nodes))
        .route("/admin/v1/nodes/{id}", get(node))
        .route("/admin/v1/nodes/{id}/drain", post(drain))
        .route("/admin/v1/nodes/{id}/undrain", post(undrain))
        .route("/admin/v1/nodes/{id}/roles", put(set_roles))
        .route("/admin/v1/requests", get(requests))
        .route("/admin/v1/requests/{id}", delete(cancel))
        .route("/admin/v1/queue", get(queue))
        .route("/admin/v1/limits", get(limits).put(set_limits))
        .route("/admin/v1/prefix-index", get(prefix_index))
        .route("/admin/v1/flush", post(flush))
        .route("/admin/v1/advice", get(advice))
        .route("/admin/v1/topology", get(roads))
        .route("/admin/v1/incidents", get(incidents))
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .fallback(|| async { AdminError::NoRoute })
        .method_not_allowed_fallback(|| async { AdminError::NoRoute })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(guard))
        .with_state(coordinator)
}

/// There are no keys, so that a page in an operator's browser must not be able to call:
/// neither by itself, nor under a name of its own that leads here.
async fn guard(call: Call, next: Next) -> Response {
    if is_familiar(call.headers()) { next.run(call).await } else { AdminError::Stranger.into_response() }
}

fn is_familiar(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let name = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name.to_owned(),
        _ => host.to_owned(),
    };
    let is_loopback = |host: &str| {
        let name = name(host);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    !headers.contains_key(ORIGIN) && host.is_none_or(is_loopback)
}

async fn cluster(State(coordinator): State<Coordinator>) -> Json<Cluster> {
    Json(operations::cluster(&coordinator))
}

async fn nodes(State(coordinator): State<Coordinator>) -> Json<Vec<Node>> {
    Json(operations::nodes(&coordinator))
}

async fn node(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Node> {
    Ok(Json(operations::node(&coordinator, id)?))
}

async fn drain(State(coordinator): State<Coordinator>, Path(id): Path<String>, body: Bytes) -> Answer<Node> {
    let Drain { force } = if body.is_empty() { Drain::default() } else { read(&body)? };
    Ok(Json(operations::drain(&coordinator, id, force).await?))
}

async fn undrain(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Node> {
    Ok(Json(operations::undrain(&coordinator, id).await?))
}

async fn set_roles(
    State(coordinator): State<Coordinator>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Node> {
    Ok(Json(operations::set_roles(&coordinator, id, read(&body)?).await?))
}

async fn requests(State(coordinator): State<Coordinator>) -> Json<Vec<Request>> {
    Json(operations::requests(&coordinator))
}

async fn cancel(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Vec<Request>> {
    Ok(Json(operations::cancel(&coordinator, id)?))
}

async fn queue(State(coordinator): State<Coordinator>) -> Json<Vec<Queue>> {
    Json(operations::queues(&coordinator))
}

async fn limits(State(coordinator): State<Coordinator>) -> Json<Limits> {
    Json(operations::limits(&coordinator))
}

async fn set_limits(State(coordinator): State<Coordinator>, body: Bytes) -> Answer<Limits> {
    Ok(Json(operations::set_limits(&coordinator, read(&body)?)?))
}

async fn prefix_index(State(coordinator): State<Coordinator>) -> Json<PrefixIndex> {
    Json(operations::prefix_index(&coordinator))
}

async fn flush(State(coordinator): State<Coordinator>) -> Answer<Flushed> {
    Ok(Json(operations::flush(&coordinator).await?))
}

async fn advice(State(coordinator): State<Coordinator>) -> Json<Vec<Advice>> {
    Json(operations::advice(&coordinator))
}

async fn roads(State(coordinator): State<Coordinator>) -> Json<Vec<Road>> {
    Json(operations::roads(&coordinator))
}

async fn incidents(State(coordinator): State<Coordinator>) -> Json<Vec<Incident>> {
    Json(operations::incidents(&coordinator))
}

/// Without a word on the content type: there is only JSON here.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(body).map_err(|error| AdminError::Body { reason: error.to_string() })
}
