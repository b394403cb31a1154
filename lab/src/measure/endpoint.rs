//! A server and how it is asked.

use std::{path::PathBuf, time::Duration};

use reqwest::Request;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Answer, Dialogue, MeasureError, answer::in_full, dialogue::Speaker};
use crate::{
    budgets::Wishes,
    traffic::{Piece, Vocabulary},
};

/// A way into a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    #[default]
    Chat,
}

/// How requests are put.
#[derive(Clone, Debug, PartialEq)]
pub struct Manner {
    /// The way in.
    pub api: Api,
    /// Whether answers come token by token.
    pub streams: bool,
    /// The model; none: the first that the server lists.
    pub model: Option<String>,
    /// Shown with every request.
    pub key: Option<String>,
    /// How prompts are spelled; none: in words, fitted to what the server counts.
    pub vocabulary: Option<Vocabulary>,
    /// Whether the server is told of budgets (`x-baton-ttft-ms`, `x-baton-itl-ms`).
    pub tells_budgets: bool,
    /// Whether connections are used again. Servers close those that idle, or had so many
    /// requests (llama.cpp), just when the next one is sent, and it looks as if they had lost it.
    pub keeps_connections: bool,
    /// PEM file of the authority whose certificate an https server shows; none: one that browsers know.
    pub authority: Option<PathBuf>,
    /// Pages with metrics; none: `/metrics` of the server.
    pub metrics: Vec<String>,
    /// More fields of every body, and those that replace what stands there.
    pub fields: Map<String, Value>,
}

/// A server.
pub struct Endpoint {
    http: reqwest::Client,
    base: String,
    url: String,
    model: String,
    vocabulary: Vocabulary,
    manner: Manner,
}

/// A pause of the server after which a request has failed.
const SILENCE: Duration = Duration::from_secs(120);
/// Words of the two prompts that are sent to see how many tokens a word has.
const PROBES: [usize; 2] = [32, 160];

// === impl Manner ===

impl Default for Manner {
    fn default() -> Self {
        Self {
            api: Api::default(),
            streams: true,
            model: None,
            key: None,
            vocabulary: None,
            tells_budgets: false,
            keeps_connections: false,
            authority: None,
            metrics: Vec::new(),
            fields: Map::new(),
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// The server at `base`, asked for its models and, where words are to be
    /// fitted, two short questions.
    ///
    /// # Errors
    /// When it does not answer as such servers do.
    pub async fn connect(base: &str, manner: Manner) -> Result<Self, MeasureError> {
        let base = base.trim_end_matches('/').to_owned();
        let idle = if manner.keeps_connections { usize::MAX } else { 0 };
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).pool_max_idle_per_host(idle);
        let tls = baton_trust::https_to(manner.authority.as_deref())?;
        let http = http.read_timeout(SILENCE).tls_backend_preconfigured(tls).build();
        let http = http.map_err(|source| MeasureError::Http { url: base.clone(), source })?;
        let url = match manner.api {
            Api::Completions => format!("{base}/v1/completions"),
            Api::Chat => format!("{base}/v1/chat/completions"),
        };
        let vocabulary = manner.vocabulary.unwrap_or(Vocabulary::PLAIN);
        let model = manner.model.clone().unwrap_or_default();
        let mut endpoint = Self { http, base, url, model, vocabulary, manner };
        if endpoint.model.is_empty() {
            endpoint.model = endpoint.first_model().await?;
        }
        if endpoint.manner.vocabulary.is_none() {
            endpoint.vocabulary = endpoint.fit().await?;
        }
        Ok(endpoint)
    }

    /// Its base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// How prompts are spelled.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A request, ready to be sent.
    ///
    /// # Errors
    /// When the dialogue cannot be put so.
    pub fn request(
        &self,
        dialogue: &Dialogue,
        output_tokens: usize,
        wishes: &Wishes,
    ) -> Result<Request, MeasureError> {
        let (key, prompt) = dialogue.body(self.manner.api)?;
        // As many tokens as wanted, so that every run does the same work.
        let mut body = json!({
            "model": self.model, "max_tokens": output_tokens, "temperature": 0, "ignore_eos": true,
            "stream": self.manner.streams,
        });
        body[key] = prompt;
        if self.manner.streams {
            body["stream_options"] = json!({"include_usage": true});
        }
        for (key, value) in &self.manner.fields {
            body[key] = value.clone();
        }
        let mut request = self.http.post(&self.url).json(&body);
        if let Some(key) = &self.manner.key {
            request = request.bearer_auth(key);
        }
        let Wishes { budgets, deadline_ms, priority } = *wishes;
        let told = |ms: Option<f64>| ms.filter(|_| self.manner.tells_budgets);
        for (name, ms) in [
            ("x-baton-ttft-ms", told(budgets.ttft_ms)),
            ("x-baton-itl-ms", told(budgets.itl_ms)),
            ("x-baton-deadline-ms", deadline_ms),
        ] {
            if let Some(ms) = ms {
                request = request.header(name, ms.round().max(1.0) as u64);
            }
        }
        if priority != 0 {
            request = request.header("x-baton-priority", priority);
        }
        request.build().map_err(|source| MeasureError::Http { url: self.url.clone(), source })
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&self, request: Request) -> Answer {
        match self.http.execute(request).await {
            Ok(response) => Answer::read(response, self.manner.streams).await,
            Err(error) => Answer::failed(in_full(&error)),
        }
    }

    /// Its pages with metrics.
    pub(super) async fn metrics(&self) -> Vec<String> {
        let own = format!("{}/metrics", self.base);
        let urls =
            if self.manner.metrics.is_empty() { std::slice::from_ref(&own) } else { &self.manner.metrics };
        let mut pages = Vec::with_capacity(urls.len());
        for url in urls {
            pages.extend(self.page(url).await);
        }
        pages
    }

    /// The text of a page of the server; none: it has no such page.
    pub async fn page(&self, url: &str) -> Option<String> {
        self.http.get(url).send().await.ok()?.error_for_status().ok()?.text().await.ok()
    }

    async fn first_model(&self) -> Result<String, MeasureError> {
        let url = format!("{}/v1/models", self.base);
        let http = |source| MeasureError::Http { url: url.clone(), source };
        let mut request = self.http.get(&url);
        if let Some(key) = &self.manner.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.and_then(reqwest::Response::error_for_status).map_err(http)?;
        let list: Value = response.json().await.map_err(http)?;
        let name = list["data"][0]["id"].as_str().map(str::to_owned);
        name.ok_or_else(|| MeasureError::NoServer { url: url.clone(), what: "it lists no model".to_owned() })
    }

    /// Sees what the server counts in words.
    async fn fit(&self) -> Result<Vocabulary, MeasureError> {
        let no = |what: String| MeasureError::NoServer { url: self.url.clone(), what };
        let mut counted = Vec::new();
        for words in PROBES {
            let mut dialogue = Dialogue::new(&Vocabulary::PLAIN);
            let piece = Piece::Drawn { seed: words as u64, tokens: words };
            dialogue.say(Speaker::User, &[piece], &Vocabulary::PLAIN)?;
            let answer = self.ask(self.request(&dialogue, 1, &Wishes::default())?).await;
            let usage =
                answer.usage.ok_or_else(|| no(format!("it counts no tokens ({:?})", answer.outcome)))?;
            counted.push((words, usage.prompt_tokens));
        }
        let fitted = Vocabulary::fit(counted[0], counted[1]);
        fitted.ok_or_else(|| no(format!("it counts the same tokens in any prompt: {counted:?}")))
    }
}
