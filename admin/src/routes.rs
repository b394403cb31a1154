//! Which path does what.

use std::{collections::BTreeSet, net::IpAddr};

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
use baton_protocol::{NodeId, RequestId, Role, node::UnknownRole};
use serde::de::DeserializeOwned;

use crate::{
    error::AdminError,
    openapi,
    views::{Advice, Cluster, Drain, Flushed, LimitsView, Node, PrefixIndex, Queue, Request, Roles},
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
    Json((&coordinator.status()).into())
}

async fn nodes(State(coordinator): State<Coordinator>) -> Json<Vec<Node>> {
    Json(coordinator.status().nodes.into_iter().map(Into::into).collect())
}

async fn node(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Node> {
    find(&coordinator, id)
}

fn find(coordinator: &Coordinator, id: String) -> Answer<Node> {
    let found = coordinator.status().nodes.into_iter().find(|node| node.id.0 == id);
    found.map(|node| Json(node.into())).ok_or(AdminError::NoNode { id })
}

async fn drain(State(coordinator): State<Coordinator>, Path(id): Path<String>, body: Bytes) -> Answer<Node> {
    let Drain { force } = if body.is_empty() { Drain::default() } else { read(&body)? };
    coordinator.drain(&NodeId(id.clone()), force).await?;
    find(&coordinator, id)
}

async fn undrain(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Node> {
    coordinator.undrain(&NodeId(id.clone())).await?;
    find(&coordinator, id)
}

async fn set_roles(
    State(coordinator): State<Coordinator>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Node> {
    let Roles { roles, force } = read(&body)?;
    let roles = roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
    let roles = roles.map_err(|unknown: UnknownRole| AdminError::Body { reason: unknown.to_string() })?;
    coordinator.set_roles(&NodeId(id.clone()), &roles, force).await?;
    find(&coordinator, id)
}

async fn requests(State(coordinator): State<Coordinator>) -> Json<Vec<Request>> {
    Json(coordinator.requests().into_iter().map(Into::into).collect())
}

async fn cancel(State(coordinator): State<Coordinator>, Path(id): Path<String>) -> Answer<Vec<Request>> {
    let number = u128::from_str_radix(&id, 16).ok().map(RequestId);
    let before = coordinator.requests();
    let Some(number) = number.filter(|number| coordinator.cancel(*number)) else {
        return Err(AdminError::NoRequest { id });
    };
    let cancelled = before.into_iter().filter(|request| request.id == number);
    Ok(Json(cancelled.map(Into::into).collect()))
}

async fn queue(State(coordinator): State<Coordinator>) -> Json<Vec<Queue>> {
    Json(coordinator.queues().into_iter().map(Into::into).collect())
}

async fn limits(State(coordinator): State<Coordinator>) -> Json<LimitsView> {
    Json(coordinator.limits().into())
}

async fn set_limits(State(coordinator): State<Coordinator>, body: Bytes) -> Answer<LimitsView> {
    let wanted: LimitsView = read(&body)?;
    Ok(Json(coordinator.set_limits(wanted.into())?.into()))
}

async fn prefix_index(State(coordinator): State<Coordinator>) -> Json<PrefixIndex> {
    let stats = coordinator.prefix_stats();
    let nodes = coordinator.status().nodes.into_iter();
    let by_node = nodes.map(|node| (node.id.0, node.indexed_pages)).collect();
    Json(PrefixIndex { pages: stats.pages, sets: stats.sets, by_node })
}

async fn flush(State(coordinator): State<Coordinator>) -> Answer<Flushed> {
    let nodes = coordinator.forget_prefixes().await?;
    Ok(Json(Flushed { nodes: nodes.into_iter().map(|node| node.0).collect() }))
}

async fn advice(State(coordinator): State<Coordinator>) -> Json<Vec<Advice>> {
    Json(coordinator.advice().into_iter().map(Into::into).collect())
}

/// Without a word on the content type: there is only JSON here.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(body).map_err(|error| AdminError::Body { reason: error.to_string() })
}
