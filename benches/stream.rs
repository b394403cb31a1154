//! One call of `/v1/chat/completions` with a streamed answer of 256 tokens,
//! through the API's routes, without a socket and without a cluster.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, http::Request as Call};
use baton_coordinator::{ServedModel, Wishes};
use baton_frontend::{
    Answer, Config, Dispatch, Door, HttpMetrics, KeptAnswers, Readiness, Services, Shelves, serve,
};
use baton_model::ModelText;
use baton_protocol::{Bill, ErrorCode, Event, Failure, FinishReason, Request, Token};
use baton_trust::Gate;
use criterion::{Criterion, Throughput};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};
use tower::ServiceExt;

const TOKENS: u32 = 256;

/// Says the same to everyone, all at once.
struct Script {
    text: Arc<[u8]>,
    model: ServedModel,
}

struct Said(std::vec::IntoIter<Event>);

/// From the call's bytes to the answer's last.
pub fn answer(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut tasks = JoinSet::new();
    let routes = runtime.block_on(routes(&mut tasks));
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Elements(u64::from(TOKENS)));
    group.bench_function("answer_256", |bencher| {
        bencher.iter(|| {
            let bytes = runtime.block_on(call(routes.clone()));
            assert!(bytes > TOKENS as usize * 100);
        });
    });
    group.finish();
}

/// Bytes of an answer.
async fn call(routes: Router) -> usize {
    let body =
        r#"{"model":"mock","messages":[{"role":"user","content":"Say it."}],"stream":true,"max_tokens":256}"#;
    let call = Call::post("/v1/chat/completions")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    let response = routes.oneshot(call).await.unwrap();
    assert_eq!(response.status(), 200);
    let events = response.into_body().into_data_stream();
    events.fold(0, |sum, event| async move { sum + event.unwrap().len() }).await
}

async fn routes(tasks: &mut JoinSet<()>) -> Router {
    let (config, text) = (Config::default(), ModelText::mock());
    let mut registry = Registry::default();
    let metrics = HttpMetrics::register(&mut registry);
    let listener = Gate::NoKeys.listen(([127, 0, 0, 1], 0).into()).unwrap();
    let (inside, given) = oneshot::channel();
    let services = Services {
        dispatch: Arc::new(Script::new(&text)),
        registry: Arc::new(registry),
        metrics,
        door: Door::new(None).await.unwrap(),
        https: None,
        kept: KeptAnswers::open(&config).await.unwrap(),
        shelves: Shelves::open(&config).await.unwrap(),
        texts: vec![Arc::new(text)],
        seat: None,
        inside: Some(inside),
    };
    tasks.spawn(async move { serve(listener, config, services, futures::future::pending()).await.unwrap() });
    given.await.unwrap()
}

// === impl Script ===

impl Script {
    fn new(text: &ModelText) -> Self {
        let model = ServedModel {
            name: "mock".to_owned(),
            text_digest: text.digest(),
            context_tokens: 4096,
            pool_tokens: u32::MAX,
            fingerprint: String::new(),
        };
        Self { text: text.to_bytes().into(), model }
    }
}

impl Dispatch for Script {
    fn dispatch(
        &self,
        _request: Request,
        _wishes: Wishes,
    ) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>> {
        let token = |position| {
            let id = u32::from(b'a') + position % 26;
            Event::Token(Token { choice: 0, position, id, logprob: None, top: Vec::new() })
        };
        let mut events = vec![Event::Accepted { cached_tokens: 0 }];
        events.extend((0..TOKENS).map(token));
        events.extend([
            Event::Bill(Bill::default()),
            Event::Finished { choice: 0, reason: FinishReason::Length },
        ]);
        futures::future::ready(Ok(Box::new(Said(events.into_iter())) as Box<dyn Answer>)).boxed()
    }

    fn models(&self) -> Vec<ServedModel> {
        vec![self.model.clone()]
    }

    fn expected(&self) -> &[String] {
        &[]
    }

    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>> {
        let text = match model {
            "mock" => Ok(Arc::clone(&self.text)),
            _ => Err(Failure::new(ErrorCode::UnknownModel, "no such model")),
        };
        futures::future::ready(text).boxed()
    }

    fn forget_prefixes(&self) -> BoxFuture<'_, Result<(), Failure>> {
        futures::future::ready(Ok(())).boxed()
    }

    fn ready(&self) -> Result<Readiness, Vec<String>> {
        Ok(Readiness { nodes: 1, ..Readiness::default() })
    }
}

impl Answer for Said {
    fn poll_event(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Event>> {
        Poll::Ready(self.0.next())
    }

    fn stop_choice(&mut self, _choice: u32) {}
}
