//! Which path does what; request ids and counting around every call.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::{
    Config, HttpMetrics, anthropic,
    calls::{Desk, Ticket},
    crossroads,
    dispatch::Readiness,
    error::ApiError,
    metrics::Route,
    openai,
    reply::unix_seconds,
    serve::Services,
    sglang,
    texts::Texts,
    tgi,
    validate::random_id,
    vllm,
};

/// What every route can reach.
pub struct Room {
    pub desk: Desk,
    registry: Arc<Registry>,
    pub metrics: HttpMetrics,
    /// Start of this process, seconds since 1970: what models say as their age.
    pub started: u64,
}

/// All routes, and the texts that they use. Every path that is not named here is refused.
pub fn router(config: Config, services: Services) -> (Router, Arc<Texts>) {
    let Services { dispatch, registry, metrics, texts } = services;
    let texts = Arc::new(Texts::new(Arc::clone(&dispatch), &config, texts));
    let streams = Arc::new(Semaphore::new(config.max_streams));
    let desk = Desk { config, dispatch, texts: Arc::clone(&texts), streams };
    let room = Arc::new(Room { desk, registry, metrics, started: unix_seconds() });
    let router = Router::new()
        .merge(openai::router())
        .merge(vllm::router())
        .merge(anthropic::router())
        .merge(tgi::router())
        .merge(sglang::router())
        .merge(crossroads::router())
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { ApiError::NoRoute })
        .method_not_allowed_fallback(|| async { ApiError::Method })
        // Bodies have a limit of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&room), around))
        .with_state(room);
    (router, texts)
}

/// Gives the call an id and counts it.
async fn around(State(room): State<Arc<Room>>, mut request: Request, next: Next) -> Response {
    let tally = Arc::new(room.metrics.start(Route::of(request.uri().path())));
    let (id, mut response) = match random_id() {
        Ok(id) => {
            request.extensions_mut().insert(Ticket { id, tally: Arc::clone(&tally) });
            (id.to_string(), next.run(request).await)
        }
        Err(error) => (String::new(), error.into_response()),
    };
    let status = response.status();
    tally.answered(status.as_u16());
    if status.is_server_error() {
        warn!(id, status = status.as_u16(), "call failed");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// The routes of a process that has no API to serve.
pub fn metrics_router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(|State(registry): State<Arc<Registry>>| async move { scrape(&registry) }))
        .fallback(|| async { ApiError::NoRoute })
        .with_state(registry)
}

async fn health() -> Response {
    Json(json!({ "status": "alive" })).into_response()
}

/// The answer to `/ready` of a cluster that serves.
#[derive(Serialize)]
struct Ready {
    status: &'static str,
    #[serde(flatten)]
    readiness: Readiness,
}

async fn ready(State(room): State<Arc<Room>>) -> Response {
    match room.desk.dispatch.ready() {
        Ok(readiness) => Json(Ready { status: "ready", readiness }).into_response(),
        Err(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "reasons": reasons })))
                .into_response()
        }
    }
}

async fn metrics_text(State(room): State<Arc<Room>>) -> Result<Response, ApiError> {
    scrape(&room.registry)
}

fn scrape(registry: &Registry) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .map_err(|_| ApiError::internal("metrics cannot be written"))?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
