//! One streamed completion of given tokens, and what came of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::client::Events;

/// A server that runs the mock backend.
pub(super) struct Caller {
    http: reqwest::Client,
    url: String,
}

/// What came of a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Called {
    /// From sending to the first text.
    pub first: Option<Duration>,
    /// Between two events with text.
    pub gaps: Vec<Duration>,
    /// From sending to the end of what came.
    pub total: Duration,
    /// HTTP's; 0: none came.
    pub status: u16,
    /// Whether a refusal said when to come back.
    pub says_when: bool,
    /// The answer.
    pub text: String,
    /// Whether it came to its end.
    pub is_whole: bool,
}

// === impl Caller ===

impl Caller {
    pub(super) fn new(addr: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { http, url: format!("http://{addr}") })
    }

    /// Asks for so many tokens after a prompt.
    pub(super) async fn complete(&self, prompt: &[u32], tokens: usize) -> Called {
        self.complete_within(prompt, tokens, None).await
    }

    /// As [`complete`](Self::complete), with a budget between tokens.
    pub(super) async fn complete_within(&self, prompt: &[u32], tokens: usize, itl_ms: Option<u64>) -> Called {
        let body = json!({
            "model": "mock", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
            "stream": true,
        });
        let (sent, mut called) = (Instant::now(), Called::default());
        // What breaks off is not whole: that is all there is to say of it.
        let mut request = self.http.post(format!("{}/v1/completions", self.url)).json(&body);
        if let Some(itl_ms) = itl_ms {
            request = request.header("x-baton-itl-ms", itl_ms);
        }
        let _ = read(request, sent, &mut called).await;
        called.total = sent.elapsed();
        called
    }

    /// How long the server takes to say that it is alive.
    pub(super) async fn health(&self) -> Result<Duration> {
        let sent = Instant::now();
        self.http.get(format!("{}/health", self.url)).send().await?.bytes().await?;
        Ok(sent.elapsed())
    }
}

async fn read(request: reqwest::RequestBuilder, sent: Instant, called: &mut Called) -> Result<()> {
    let response = request.send().await?;
    called.status = response.status().as_u16();
    called.says_when = response.headers().contains_key("retry-after");
    if !response.status().is_success() {
        response.bytes().await?;
        return Ok(());
    }
    let (mut events, mut bytes, mut last) = (Events::default(), response.bytes_stream(), None);
    while let Some(part) = bytes.next().await {
        for event in events.push(&part?) {
            if event == "[DONE]" {
                called.is_whole = true;
                return Ok(());
            }
            let chunk: Value = serde_json::from_str(&event).context("an event that is not JSON")?;
            let text = chunk["choices"][0]["text"].as_str().unwrap_or("");
            if !text.is_empty() {
                called.text += text;
                let now = Instant::now();
                match last.replace(now) {
                    None => called.first = Some(now - sent),
                    Some(before) => called.gaps.push(now - before),
                }
            }
        }
    }
    Ok(())
}
