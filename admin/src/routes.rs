//! Which path does what.

use std::net::IpAddr;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request as Call, State},
    http::{
        HeaderMap,
        header::{HOST, ORIGIN},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use serde::de::DeserializeOwned;

use crate::{
    desk::{Desk, Operator, authorization},
    error::AdminError,
    openapi, operations, playground,
    views::{
        Act, Advice, Cluster, Drain, Flushed, Handoff, Incident, Limits, Node, Pace, PrefixIndex, Queue,
        Request, Road,
    },
};

type Answer<T> = Result<Json<T>, AdminError>;

/// Longest body of an operator's call.
const MAX_BODY_BYTES: usize = 64 << 10;

/// All routes over a desk.
pub fn router(desk: Desk) -> Router {
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
        .route("/admin/v1/handoffs", get(handoffs))
        .route("/admin/v1/incidents", get(incidents))
        .route("/admin/v1/pace", get(pace))
        .route("/admin/v1/audit", get(acts))
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .merge(playground::router())
        .fallback(|| async { AdminError::NoRoute })
        .method_not_allowed_fallback(|| async { AdminError::NoRoute })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(desk.clone(), guard))
        .with_state(desk)
}

/// Nobody's page in an operator's browser must be able to call, neither by itself nor under a name
/// of its own that leads here, but for the console, which comes from here.
async fn guard(State(desk): State<Desk>, mut call: Call, next: Next) -> Response {
    if !is_familiar(call.headers()) {
        return AdminError::Stranger.into_response();
    }
    let id = call.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    match desk.operator(authorization(call.headers()), id) {
        Ok(operator) => {
            call.extensions_mut().insert(operator);
            next.run(call).await
        }
        Err(error) => error.into_response(),
    }
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
    let is_ours = |origin: &str| origin.strip_prefix("http://").is_some_and(|origin| Some(origin) == host);
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().is_ok_and(is_ours));
    // Browsers name no origin where nothing is changed; what they say of it in place of that is believed.
    let site =
        headers.get("sec-fetch-site").map(|site| ["same-origin", "none"].iter().any(|own| site == own));
    origin.unwrap_or(true) && site.unwrap_or(true) && host.is_none_or(is_loopback)
}

async fn cluster(State(desk): State<Desk>) -> Json<Cluster> {
    Json(operations::cluster(&desk))
}

async fn nodes(State(desk): State<Desk>) -> Json<Vec<Node>> {
    Json(operations::nodes(&desk))
}

async fn node(State(desk): State<Desk>, Path(id): Path<String>) -> Answer<Node> {
    Ok(Json(operations::node(&desk, id)?))
}

async fn drain(
    State(desk): State<Desk>,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Node> {
    let Drain { force } = if body.is_empty() { Drain::default() } else { read(&body)? };
    Ok(Json(operations::drain(desk, who, id, force).await?))
}

async fn undrain(
    State(desk): State<Desk>,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
) -> Answer<Node> {
    Ok(Json(operations::undrain(desk, who, id).await?))
}

async fn set_roles(
    State(desk): State<Desk>,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Node> {
    Ok(Json(operations::set_roles(desk, who, id, read(&body)?).await?))
}

async fn requests(State(desk): State<Desk>) -> Json<Vec<Request>> {
    Json(operations::requests(&desk))
}

async fn cancel(
    State(desk): State<Desk>,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
) -> Answer<Vec<Request>> {
    Ok(Json(operations::cancel(desk, who, id).await?))
}

async fn queue(State(desk): State<Desk>) -> Json<Vec<Queue>> {
    Json(operations::queues(&desk))
}

async fn limits(State(desk): State<Desk>) -> Json<Limits> {
    Json(operations::limits(&desk))
}

async fn set_limits(
    State(desk): State<Desk>,
    Extension(who): Extension<Operator>,
    body: Bytes,
) -> Answer<Limits> {
    Ok(Json(operations::set_limits(desk, who, read(&body)?).await?))
}

async fn prefix_index(State(desk): State<Desk>) -> Json<PrefixIndex> {
    Json(operations::prefix_index(&desk))
}

async fn flush(State(desk): State<Desk>, Extension(who): Extension<Operator>) -> Answer<Flushed> {
    Ok(Json(operations::flush(desk, who).await?))
}

async fn advice(State(desk): State<Desk>) -> Json<Vec<Advice>> {
    Json(operations::advice(&desk))
}

async fn handoffs(State(desk): State<Desk>) -> Json<Vec<Handoff>> {
    Json(operations::handoffs(&desk))
}

async fn roads(State(desk): State<Desk>) -> Json<Vec<Road>> {
    Json(operations::roads(&desk))
}

async fn incidents(State(desk): State<Desk>) -> Json<Vec<Incident>> {
    Json(operations::incidents(&desk))
}

async fn pace(State(desk): State<Desk>) -> Json<Pace> {
    Json(operations::pace(&desk))
}

async fn acts(State(desk): State<Desk>) -> Json<Vec<Act>> {
    Json(operations::acts(&desk))
}

/// Without a word on the content type: there is only JSON here.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(body).map_err(|error| AdminError::Body { reason: error.to_string() })
}
