//! What HTTP saw, for `/metrics`.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use baton_traces::Span;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::door::tenant::Tenant;

/// Which route a call took: the label's whole range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`
    Messages,
    /// `/generate`, `/generate_stream`, and `/` for those who post there
    Generate,
    /// `/tokenize`, `/detokenize`, `/v1/messages/count_tokens` and `/v1/responses/input_tokens`
    Tokenize,
    /// `/v1/models` and one model
    Models,
    /// `/v1/files`, `/v1/batches` and what is below them and `/v1/responses`
    Files,
    /// A line of a batch
    Line,
    /// `/health`, `/ready` and `/openapi.json`
    Health,
    /// `/metrics`
    Metrics,
    /// Anything else
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    route: &'static str,
    /// The answer's status; 499 when the client left before its end.
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

/// Where a call that took so long is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Traced {
    trace_id: String,
}

/// How long things took, each bucket with a call of it that was traced.
type Seconds = HistogramWithExemplars<Traced>;

/// Counters and histograms of the HTTP room. Clones share them.
#[derive(Clone)]
pub struct HttpMetrics {
    calls: Family<CallLabels, Counter>,
    running: Gauge,
    answering: Gauge,
    first_token: Family<RouteLabel, Seconds>,
    duration: Family<RouteLabel, Seconds>,
    broken_streams: Counter,
}

/// One call, from its head to the last byte of its answer. Counted when dropped.
pub struct Tally {
    route: Route,
    started: Instant,
    status: AtomicU16,
    /// Whether the answer outlives the handler.
    streaming: AtomicBool,
    /// Whether it ended with an error.
    broken: AtomicBool,
    first_token: OnceLock<Duration>,
    /// Its work, whoever does it.
    span: Mutex<Span>,
    metrics: HttpMetrics,
    /// Whose limits its tokens count against.
    tenant: Option<Arc<Tenant>>,
}

/// What is counted when nobody was left to hear the answer.
const CLIENT_CLOSED: u16 = 499;

// === impl Route ===

impl Route {
    /// The route of a path.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/generate" | "/generate_stream" | "/" => Self::Generate,
            "/tokenize" | "/detokenize" | "/v1/messages/count_tokens" | "/v1/responses/input_tokens" => {
                Self::Tokenize
            }
            "/health" | "/ready" | "/openapi.json" => Self::Health,
            "/metrics" => Self::Metrics,
            _ if is_below(path, "/v1/models") => Self::Models,
            _ if ["/v1/files", "/v1/batches", "/v1/responses"]
                .iter()
                .any(|folder| is_below(path, folder)) =>
            {
                Self::Files
            }
            _ => Self::Other,
        }
    }

    /// Whether it takes no key: for probes and scrapers.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Metrics)
    }

    /// Whether calls ask for an answer.
    pub(crate) const fn answers(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::Completions
                | Self::Embeddings
                | Self::Responses
                | Self::Messages
                | Self::Generate
        )
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::Generate => "generate",
            Self::Tokenize => "tokenize",
            Self::Models => "models",
            Self::Files => "files",
            Self::Line => "batch_line",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Other => "other",
        }
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

// === impl HttpMetrics ===

impl HttpMetrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            running: Gauge::default(),
            answering: Gauge::default(),
            first_token: Family::new_with_constructor(seconds),
            duration: Family::new_with_constructor(seconds),
            broken_streams: Counter::default(),
        };
        let http = registry.sub_registry_with_prefix("http");
        http.register("requests", "calls by route and status", metrics.calls.clone());
        http.register("requests_running", "calls not yet answered to the end", metrics.running.clone());
        http.register(
            "answers_running",
            "those among them that ask for an answer",
            metrics.answering.clone(),
        );
        http.register_with_unit(
            "time_to_first_token",
            "from a call's head to its first token",
            Unit::Seconds,
            metrics.first_token.clone(),
        );
        http.register_with_unit(
            "request_duration",
            "from a call's head to the end of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        http.register("broken_streams", "streams that ended with an error", metrics.broken_streams.clone());
        metrics
    }

    /// Calls for answers that have not ended.
    pub(crate) fn answering(&self) -> i64 {
        self.answering.get()
    }

    /// Counts a call that has come, and whose work is `span`.
    pub(crate) fn start(&self, route: Route, tenant: Option<Arc<Tenant>>, span: Span) -> Tally {
        self.running.inc();
        if route.answers() {
            self.answering.inc();
        }
        Tally {
            route,
            started: Instant::now(),
            status: AtomicU16::new(CLIENT_CLOSED),
            streaming: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            first_token: OnceLock::new(),
            span: Mutex::new(span),
            metrics: self.clone(),
            tenant,
        }
    }
}

/// Buckets from 1 ms to 2 minutes.
fn seconds() -> Seconds {
    let buckets =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
    Seconds::new(buckets.into_iter())
}

// === impl Tally ===

impl Tally {
    /// The whole answer is there, with this status.
    pub(crate) fn answered(&self, status: u16) {
        if !self.streaming.load(Ordering::Relaxed) {
            self.status.store(status, Ordering::Relaxed);
        }
    }

    /// The answer goes on after the handler returned.
    pub(crate) fn streams(&self) {
        self.streaming.store(true, Ordering::Relaxed);
    }

    /// The stream reached its end.
    pub(crate) fn stream_ended(&self, broken: bool) {
        self.status.store(200, Ordering::Relaxed);
        self.broken.store(broken, Ordering::Relaxed);
        if broken {
            self.metrics.broken_streams.inc();
        }
    }

    /// Whether the stream ended with an error.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// So many tokens of prompt or answer are the caller's.
    pub(crate) fn spend(&self, tokens: usize) {
        if let Some(tenant) = &self.tenant {
            tenant.spend_tokens(u32::try_from(tokens).unwrap_or(u32::MAX));
        }
    }

    /// A token of any choice is there.
    pub(crate) fn saw_token(&self) {
        self.spend(1);
        self.first_token.get_or_init(|| {
            self.span.lock().mark("first token");
            self.started.elapsed()
        });
    }

    /// Of what requests that it makes are a part.
    pub(crate) fn trace(&self) -> String {
        self.span.lock().parent()
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let (route, status) = (self.route.as_str(), self.status.load(Ordering::Relaxed));
        let span = self.span.get_mut();
        let traced = span.trace_id().map(|trace_id| Traced { trace_id });
        span.set("http.response.status_code", || i64::from(status));
        if status >= 500 || *self.broken.get_mut() {
            span.fail("the call failed");
        }
        self.metrics.running.dec();
        if self.route.answers() {
            self.metrics.answering.dec();
        }
        self.metrics.calls.get_or_create(&CallLabels { route, status }).inc();
        self.metrics.duration.get_or_create(&RouteLabel { route }).observe(
            self.started.elapsed().as_secs_f64(),
            traced.clone(),
            None,
        );
        if let Some(first_token) = self.first_token.get() {
            let first_tokens = self.metrics.first_token.get_or_create(&RouteLabel { route });
            first_tokens.observe(first_token.as_secs_f64(), traced, None);
        }
    }
}
