//! A cluster that says what it is told, and a server that stands on it.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use baton_coordinator::{ServedModel, Wishes};
use baton_model::ModelText;
use baton_protocol::{Bill, ErrorCode, Event, Failure, FinishReason, Request, Token};
use baton_trust::Gate;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    Answer, Config, Dispatch, Door, FrontendError, HttpMetrics, KeptAnswers, Readiness, Services, Shelves,
    serve,
};

/// Tokens of context of the scripted model.
pub const CONTEXT: u32 = 128;

static TEXT: LazyLock<ModelText> = LazyLock::new(ModelText::mock);

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

type Play = Box<dyn Fn(&Request) -> Result<Vec<Event>, Failure> + Send + Sync>;

/// What requests are answered with, and what was asked.
pub struct Script {
    play: Play,
    pub asked: Mutex<Vec<Request>>,
    pub wishes: Mutex<Vec<Wishes>>,
    pub stopped: Mutex<Vec<u32>>,
    /// Whether answers stay open after their last event.
    hold: bool,
    /// Whether requests wait for ever to be taken.
    stuck: bool,
    /// Where open answers get more events from.
    pub open: Mutex<Vec<mpsc::Sender<Event>>>,
    pub ready: Mutex<Vec<String>>,
    /// Answers that were dropped.
    dropped: Arc<watch::Sender<usize>>,
    pub texts_fetched: AtomicUsize,
    /// How often prefix caches were to be forgotten.
    pub forgot: AtomicUsize,
    /// Tokens of the model's context.
    context: u32,
    expected: Vec<String>,
}

struct ScriptedAnswer {
    events: mpsc::Receiver<Event>,
    stopped: mpsc::Sender<u32>,
    heard: mpsc::Receiver<u32>,
    script: Arc<Script>,
}

/// The script as the room sees it.
pub struct Cluster(pub Arc<Script>);

/// A running room.
pub struct TestServer {
    pub base: String,
    pub script: Arc<Script>,
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinSet<Result<(), FrontendError>>,
}

// === events ===

/// A token without log-probability.
pub fn token(choice: u32, position: u32, id: u32) -> Event {
    Event::Token(Token { choice, position, id, logprob: None, top: Vec::new() })
}

/// Every byte of `text` as one token of `choice`.
pub fn bytes(choice: u32, text: &str) -> Vec<Event> {
    text.bytes().zip(0..).map(|(byte, position)| token(choice, position, u32::from(byte))).collect()
}

/// A whole answer: accepted, `texts` as choices one after another, a bill.
pub fn says(texts: &[&str]) -> Vec<Event> {
    let mut events = vec![Event::Accepted { cached_tokens: 3 }];
    for (choice, text) in (0..).zip(texts) {
        events.extend(bytes(choice, text));
        if choice as usize + 1 == texts.len() {
            let decode = Duration::from_micros(1500);
            let bill = Bill { cached_tokens: 5, transfer_pages: 7, decode, ..Bill::default() };
            events.push(Event::Bill(bill));
        }
        events.push(Event::Finished { choice, reason: FinishReason::Length });
    }
    events
}

// === impl Script ===

impl Script {
    pub fn new(play: impl Fn(&Request) -> Result<Vec<Event>, Failure> + Send + Sync + 'static) -> Self {
        Self {
            play: Box::new(play),
            asked: Mutex::default(),
            wishes: Mutex::default(),
            stopped: Mutex::default(),
            hold: false,
            stuck: false,
            open: Mutex::default(),
            ready: Mutex::default(),
            dropped: Arc::new(watch::Sender::new(0)),
            texts_fetched: AtomicUsize::new(0),
            forgot: AtomicUsize::new(0),
            context: CONTEXT,
            expected: Vec::new(),
        }
    }

    /// Says the same to everyone.
    pub fn saying(events: Vec<Event>) -> Self {
        Self::new(move |_| Ok(events.clone()))
    }

    /// Says one text with an end of the model's own, to prompts of any length.
    pub fn ending(text: &str) -> Self {
        let mut events = says(&[text]);
        events.pop();
        events.push(Event::Finished { choice: 0, reason: FinishReason::Stop });
        Self { context: 1 << 15, ..Self::saying(events) }
    }

    /// Answers that neither fail nor end.
    pub fn holding(events: Vec<Event>) -> Self {
        Self { hold: true, ..Self::saying(events) }
    }

    /// The same with models that are to be served.
    pub fn expecting(self, names: &[&str]) -> Self {
        Self { expected: names.iter().map(|name| (*name).to_owned()).collect(), ..self }
    }

    /// Takes no request and refuses none.
    pub fn stuck() -> Self {
        Self { stuck: true, ..Self::saying(Vec::new()) }
    }

    /// Waits until this many answers were dropped.
    pub async fn dropped(&self, answers: usize) {
        soon(self.dropped.subscribe().wait_for(|&dropped| dropped >= answers)).await.unwrap();
    }
}

impl Answer for ScriptedAnswer {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        while let Ok(choice) = self.heard.try_recv() {
            self.script.stopped.lock().push(choice);
        }
        self.events.poll_recv(cx)
    }

    fn stop_choice(&mut self, choice: u32) {
        self.stopped.try_send(choice).unwrap();
    }
}

impl Drop for ScriptedAnswer {
    fn drop(&mut self) {
        while let Ok(choice) = self.heard.try_recv() {
            self.script.stopped.lock().push(choice);
        }
        self.script.dropped.send_modify(|dropped| *dropped += 1);
    }
}

impl Dispatch for Cluster {
    fn dispatch(&self, request: Request, wishes: Wishes) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>> {
        self.0.wishes.lock().push(wishes);
        let played = (self.0.play)(&request);
        self.0.asked.lock().push(request);
        let answer = played.map(|events| {
            let (sender, receiver) = mpsc::channel(events.len() + 16);
            for event in events {
                sender.try_send(event).unwrap();
            }
            let (stopped, heard) = mpsc::channel(16);
            if self.0.hold {
                self.0.open.lock().push(sender);
            }
            let script = Arc::clone(&self.0);
            Box::new(ScriptedAnswer { events: receiver, stopped, heard, script }) as Box<dyn Answer>
        });
        if self.0.stuck { futures::future::pending().boxed() } else { futures::future::ready(answer).boxed() }
    }

    fn models(&self) -> Vec<ServedModel> {
        vec![ServedModel {
            name: "mock".to_owned(),
            text_digest: TEXT.digest(),
            context_tokens: self.0.context,
            pool_tokens: u32::MAX,
            fingerprint: String::new(),
        }]
    }

    fn expected(&self) -> &[String] {
        &self.0.expected
    }

    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>> {
        self.0.texts_fetched.fetch_add(1, Ordering::SeqCst);
        let text = match model {
            "mock" => Ok(TEXT.to_bytes().into()),
            _ => Err(Failure::new(ErrorCode::UnknownModel, "no such model")),
        };
        futures::future::ready(text).boxed()
    }

    fn forget_prefixes(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.0.forgot.fetch_add(1, Ordering::SeqCst);
        futures::future::ready(Ok(())).boxed()
    }

    fn ready(&self) -> Result<Readiness, Vec<String>> {
        let reasons = self.0.ready.lock().clone();
        if reasons.is_empty() { Ok(Readiness { nodes: 1, ..Readiness::default() }) } else { Err(reasons) }
    }
}

// === impl TestServer ===

impl TestServer {
    pub async fn start(script: Script) -> Self {
        Self::configured(script, Config::default()).await
    }

    pub async fn configured(script: Script, config: Config) -> Self {
        let script = Arc::new(script);
        let listener = Gate::NoKeys.listen(([127, 0, 0, 1], 0).into()).unwrap();
        let base = format!("http://{}", listener.local_addr());
        let mut registry = Registry::default();
        let metrics = HttpMetrics::register(&mut registry);
        let dispatch = Arc::new(Cluster(Arc::clone(&script)));
        let door = Door::new(config.keys_file.clone()).await.unwrap();
        let kept = KeptAnswers::open(&config).await.unwrap();
        let shelves = Shelves::open(&config).await.unwrap();
        let (registry, texts) = (Arc::new(registry), Vec::new());
        let services = Services {
            dispatch,
            registry,
            metrics,
            door,
            https: None,
            kept,
            shelves,
            texts,
            seat: None,
            inside: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let mut task = JoinSet::new();
        task.spawn(serve(listener, config, services, async {
            let _ = stopped.await;
        }));
        let tls = baton_trust::https_to(None).unwrap();
        let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).tls_backend_preconfigured(tls);
        let client = client.timeout(LIMIT).build().unwrap();
        Self { base, script, client, stop: Some(stop), task }
    }

    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.base)).json(body).send().await.unwrap()
    }

    pub async fn chat(&self, body: &Value) -> reqwest::Response {
        self.post("/v1/chat/completions", body).await
    }

    /// Posts a body that must be answered, and reads the answer.
    pub async fn answered(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let value: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Posts a streaming body, and reads the payloads of all events.
    pub async fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        payloads(&response.text().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    /// Asks for shutdown and waits for its end.
    pub async fn shut_down(mut self) {
        drop(self.stop.take());
        soon(self.task.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Asks for shutdown without waiting.
    pub fn begin_shutdown(&mut self) {
        drop(self.stop.take());
    }
}

/// What must happen, but nobody knows when. The limit only ends a test that has failed.
pub async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, happens).await.expect("it did not happen")
}

/// Waits until `holds`.
pub async fn until(mut holds: impl FnMut() -> bool) {
    let held = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    soon(held).await;
}

/// The payloads of a complete event stream.
pub fn payloads(stream: &str) -> Vec<String> {
    assert!(stream.ends_with("\n\n"), "{stream:?}");
    stream.trim_end().split("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}
