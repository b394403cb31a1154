//! Which path does what; request ids and counting around every call.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use baton_traces::Span;
use prometheus_client::registry::Registry;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{sync::Semaphore, time::Instant};
use tracing::warn;

use crate::{
    Config, HttpMetrics, Shelves, anthropic, batches,
    calls::{Desk, Ticket},
    crossroads,
    dispatch::Readiness,
    door::{Door, cors},
    error::ApiError,
    files,
    metrics::Route,
    openai,
    openapi::{self, Content, Operation, Schemas},
    patience::Patience,
    replay::{self, Replicas, Sent, Store},
    reply::unix_seconds,
    serve::Services,
    sglang,
    texts::Texts,
    tgi,
    validate::random_id,
    vllm,
};

/// Longest id of a client's own.
const MAX_ID_BYTES: usize = 128;

/// What every route can reach.
pub struct Room {
    pub desk: Desk,
    registry: Arc<Registry>,
    pub metrics: HttpMetrics,
    pub door: Door,
    pub kept: Arc<Store>,
    pub replicas: Replicas,
    pub shelves: Arc<Shelves>,
    /// Start of this process, seconds since 1970: what models say as their age.
    pub started: u64,
}

// === impl Room ===

impl Room {
    /// Has nodes forget what their prefix caches hold.
    ///
    /// # Errors
    /// With API keys: whose a page is cannot be told from it, so that every tenant's would go.
    pub async fn forget_prefixes(&self) -> Result<(), ApiError> {
        if self.door.wants_keys() {
            return Err(ApiError::OperatorsOnly { command: "baton admin flush" });
        }
        self.desk.dispatch.forget_prefixes().await?;
        Ok(())
    }
}

/// All routes, and the room that they share. Every path that is not named here is refused.
pub fn router(config: Config, services: Services, replicas: Replicas) -> (Router, Arc<Room>) {
    let Services { dispatch, registry, metrics, door, kept, shelves, texts, seat: _, https: _, inside: _ } =
        services;
    let cors = cors(&config.cors_origins);
    let texts = Arc::new(Texts::new(Arc::clone(&dispatch), &config, texts));
    let streams = Arc::new(Semaphore::new(config.max_streams));
    let desk = Desk { config, dispatch, texts, streams };
    let started = unix_seconds();
    let room = Arc::new(Room { desk, registry, metrics, door, kept, replicas, shelves, started });
    let router = Router::new()
        .merge(openai::router())
        .merge(vllm::router())
        .merge(anthropic::router())
        .merge(tgi::router())
        .merge(sglang::router())
        .merge(crossroads::router())
        .merge(openai::responses::router())
        .merge(files::router())
        .merge(batches::router())
        .merge(openapi::router())
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .fallback(|| async { ApiError::NoRoute })
        .method_not_allowed_fallback(|| async { ApiError::Method })
        // Bodies have a limit of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&room), around))
        .with_state(Arc::clone(&room));
    // Outermost: a browser asks before it calls, without a key.
    (if let Some(cors) = cors { router.layer(cors) } else { router }, room)
}

/// Gives the call an id, lets it in, and counts it.
async fn around(State(room): State<Arc<Room>>, mut request: Request, next: Next) -> Response {
    let route = Route::of(request.uri().path());
    let id = match random_id() {
        Ok(id) => id,
        Err(error) => return error.into_response(),
    };
    // Theirs, if they gave one, is only said back and logged.
    let given = given_id(&request);
    let shown = given.clone().or_else(|| HeaderValue::from_str(&id.to_string()).ok());
    let sent = request.extensions().get::<Sent>().cloned();
    // Who sent it has let it in.
    let enters = route.answers() && sent.is_none();
    let known = sent.map_or_else(|| room.door.tenant_of(route, request.headers()), |Sent(tenant)| Ok(tenant));
    let tenant = known.as_ref().ok().cloned();
    let admitted = known
        .and_then(|tenant| if enters { tenant.enter(Instant::now()).map(|()| tenant) } else { Ok(tenant) });
    let path = request.uri().path().to_owned();
    let span = if route.answers() { span(&request) } else { Span::default() };
    let tally = Arc::new(room.metrics.start(route, tenant.clone(), span));
    // Batches are made once too.
    let is_kept = route.answers() || request.method() == Method::POST && path == "/v1/batches";
    let answer = match admitted {
        Ok(tenant) => {
            let patience = Patience::of(request.headers());
            request.extensions_mut().insert(Ticket { id, tenant, tally: Arc::clone(&tally), patience });
            if is_kept { replay::answer(&room, request, next).await } else { Ok(next.run(request).await) }
        }
        Err(error) => Err(error),
    };
    let mut response = answer.unwrap_or_else(|error| refusal(&path, &error, &id.to_string()));
    let status = response.status();
    tally.answered(status.as_u16());
    if status.is_server_error() {
        warn!(%id, ?given, status = status.as_u16(), "call failed");
    }
    if let Some(tenant) = tenant {
        tenant.tell(response.headers_mut());
    }
    if let Some(id) = shown {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// A call's work, as part of what its caller traces.
fn span(request: &Request) -> Span {
    let caller = request.headers().get("traceparent").and_then(|words| words.to_str().ok());
    let mut span = Span::of_call(|| format!("{} {}", request.method(), request.uri().path()), caller);
    span.set("http.request.method", || request.method().to_string());
    span.set("url.path", || request.uri().path().to_owned());
    span
}

/// The client's own id of its call, if it has one that a log can bear.
fn given_id(request: &Request) -> Option<HeaderValue> {
    let given = request.headers().get("x-request-id")?;
    let is_plain = given.len() <= MAX_ID_BYTES && given.as_bytes().iter().all(u8::is_ascii_graphic);
    (is_plain && !given.is_empty()).then(|| given.clone())
}

/// Before the body is read, the path alone says in whose words a call is refused;
/// on one that dialects share, OpenAI's.
fn refusal(path: &str, error: &ApiError, id: &str) -> Response {
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => anthropic::refusal(error, id),
        "/" | "/generate_stream" | "/info" => tgi::refusal(error),
        _ => error.clone().into_response(),
    }
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
    Json(Alive { status: "alive" }).into_response()
}

/// What is served beside the dialects.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let alive = Content::Json(schemas.written::<Alive>());
    let ready = Content::Json(schemas.written::<Ready>());
    let unready = schemas.written::<Unready>();
    let metrics = Content::Text("application/openmetrics-text");
    vec![
        Operation::get("/health", "Whether this process is alive", alive, schemas).open(),
        Operation::get("/ready", "Whether a request could be served", ready, schemas)
            .refusing(unready)
            .open(),
        Operation::get("/metrics", "For Prometheus", metrics, schemas).open(),
    ]
}

#[derive(Serialize, JsonSchema)]
struct Alive {
    status: &'static str,
}

/// The answer to `/ready` of a cluster that does not serve.
#[derive(Serialize, JsonSchema)]
struct Unready {
    status: &'static str,
    reasons: Vec<String>,
}

/// The answer to `/ready` of a cluster that serves.
#[derive(Serialize, JsonSchema)]
struct Ready {
    status: &'static str,
    #[serde(flatten)]
    readiness: Readiness,
}

async fn ready(State(room): State<Arc<Room>>) -> Response {
    match room.desk.dispatch.ready() {
        Ok(readiness) => Json(Ready { status: "ready", readiness }).into_response(),
        Err(reasons) => {
            let unready = Unready { status: "not ready", reasons };
            (StatusCode::SERVICE_UNAVAILABLE, Json(unready)).into_response()
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
