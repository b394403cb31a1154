//! A small client of our own OpenAI API, for `chat`, `batch`, `demo` and `bench`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use baton_frontend::Readiness;
use baton_lab::measure::Events;
use baton_trust::{https_to, is_of_unknown_authority};
use futures::StreamExt;
use reqwest::{
    RequestBuilder, Response,
    multipart::{Form, Part},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{args, terminal::say};

/// Talks to one base URL, for example `http://127.0.0.1:8000`.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// A finished streamed answer and when its pieces came.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    /// Text of choice 0.
    pub text: String,
    /// From sending to the first text.
    pub first: Duration,
    /// Gaps between consecutive pieces of text.
    pub gaps: Vec<Duration>,
    /// From sending to the end.
    pub total: Duration,
    /// The usage object, null if the server sent none.
    pub usage: Value,
}

/// What an SSE event of a chat stream holds, as far as we read it.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Delta,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

/// Asks once whether the process behind a URL is well.
///
/// # Errors
/// When it does not say so in time; what it says instead is kept.
pub async fn probe(args: &args::Probe) -> Result<()> {
    let asked = async {
        let request = http(args.authority.file())?.get(&args.url);
        let answer = request.send().await.map_err(|error| unheard(&args.url, error))?;
        let (code, body) = (answer.status(), answer.json::<Value>().await?);
        anyhow::Ok((code, body))
    };
    let limit = Duration::from_millis(args.timeout_ms);
    let asked = tokio::time::timeout(limit, asked).await.context("too late");
    let (code, body) = asked.flatten().with_context(|| format!("no answer at {}", args.url))?;
    let status = body["status"].as_str().unwrap_or_default();
    ensure!(code.is_success(), "{code}: {status}: {}", body["reasons"]);
    say(status);
    Ok(())
}

/// What all commands call servers with. Those of https show a certificate of the authority in the
/// PEM file `ca`, or, without, of one that browsers know.
///
/// # Errors
/// When the file is of no use.
pub fn http(ca: Option<&Path>) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().tcp_nodelay(true);
    Ok(builder.tls_backend_preconfigured(https_to(ca)?).build()?)
}

/// Why no answer came from a URL, and what to do about it.
pub fn unheard(url: &str, error: reqwest::Error) -> Error {
    let what = if is_of_unknown_authority(&error) {
        format!("{url} shows a certificate of an authority that is not known here; --ca FILE makes it known")
    } else {
        format!("no server at {url}")
    };
    Error::new(error).context(what)
}

// === impl Client ===

impl Client {
    /// A client of `base`, which shows a certificate of `ca`'s authority if it is of https, as
    /// [`http`] has it.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, ca: Option<&Path>) -> Result<Self> {
        Ok(Self { http: http(ca)?, base: base.trim_end_matches('/').to_owned(), key: None })
    }

    /// Which shows the API key in `BATON_API_KEY`, if there is one.
    pub fn with_own_key(self) -> Self {
        Self { key: std::env::var("BATON_API_KEY").ok(), ..self }
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; its words are kept.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.send(self.http.get(self.url(path))).await?.json().await?)
    }

    /// Gets bytes.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn content(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.send(self.http.get(self.url(path))).await?.bytes().await?.into())
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        Ok(self.send(self.http.post(self.url(path)).json(body)).await?.json().await?)
    }

    /// Deletes.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(self.http.delete(self.url(path))).await.map(drop)
    }

    /// Keeps a file of calls; returns what is said of it.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn upload(&self, name: String, content: Vec<u8>) -> Result<Value> {
        let file = Part::bytes(content).file_name(name);
        let form = Form::new().text("purpose", "batch").part("file", file);
        Ok(self.send(self.http.post(self.url("/v1/files")).multipart(form)).await?.json().await?)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = self.key.iter().fold(request, RequestBuilder::bearer_auth);
        let response = request.send().await.map_err(|error| unheard(&self.base, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let answer: Value = response.json().await.unwrap_or_default();
        bail!("{status}: {}", answer["error"]["message"].as_str().unwrap_or("no message"));
    }

    /// What the cluster has, if it can serve.
    ///
    /// # Errors
    /// When the server cannot be reached or is not ready.
    pub async fn ready(&self) -> Result<Readiness> {
        let answer = self.http.get(self.url("/ready")).send().await;
        let answer = answer.map_err(|error| unheard(&self.base, error))?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// The first served model's name.
    ///
    /// # Errors
    /// When the server cannot be reached or serves none.
    pub async fn model(&self) -> Result<String> {
        let list = self.get("/v1/models").await?;
        let name = list["data"][0]["id"].as_str().ok_or_else(|| anyhow!("the server serves no model"))?;
        Ok(name.to_owned())
    }

    /// Posts a streaming chat body and calls `on_text` for each piece of choice 0.
    ///
    /// # Errors
    /// When the server refuses or the stream breaks; the server's words are kept.
    pub async fn chat(&self, body: &Value, mut on_text: impl FnMut(&str)) -> Result<Timed> {
        let sent = Instant::now();
        let response = self.send(self.http.post(self.url("/v1/chat/completions")).json(body)).await?;
        let mut timed = Timed::default();
        let mut last = None;
        let mut events = Events::default();
        let mut bytes = response.bytes_stream();
        while let Some(part) = bytes.next().await {
            events.push(&part?);
            while let Some(event) = events.next_data() {
                if event == "[DONE]" {
                    timed.total = sent.elapsed();
                    return Ok(timed);
                }
                let chunk: Chunk = serde_json::from_str(&event).context("unexpected event")?;
                take(&chunk, &mut timed, (sent, &mut last), &mut on_text)?;
            }
        }
        bail!("the stream ended without [DONE]")
    }
}

/// Notes one chunk's text and time.
fn take(
    chunk: &Chunk,
    timed: &mut Timed,
    (sent, last): (Instant, &mut Option<Instant>),
    on_text: &mut impl FnMut(&str),
) -> Result<()> {
    if !chunk.error.is_null() {
        bail!("{}", chunk.error["message"].as_str().unwrap_or("the server failed"));
    }
    if !chunk.usage.is_null() {
        timed.usage = chunk.usage.clone();
    }
    for choice in chunk.choices.iter().filter(|choice| choice.index == 0) {
        let Some(text) = choice.delta.content.as_deref().filter(|text| !text.is_empty()) else { continue };
        let now = Instant::now();
        match last.replace(now) {
            None => timed.first = now - sent,
            Some(before) => timed.gaps.push(now - before),
        }
        timed.text.push_str(text);
        on_text(text);
    }
    Ok(())
}
