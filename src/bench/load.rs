//! A closed loop of streaming completions: each client asks, reads its answer
//! to the end, and asks again. Talks to any server of the OpenAI API.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, future::join_all};
use serde::Deserialize;
use serde_json::json;

use crate::client::{Client, Events};

/// A server and how it is asked.
pub struct Target {
    http: reqwest::Client,
    url: String,
    model: String,
}

/// What a run asks for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients at a time.
    pub clients: usize,
    /// Requests in all.
    pub requests: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub output_tokens: usize,
}

/// What came of the requests of some runs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// From sending a request to its first text.
    pub first: Vec<Duration>,
    /// Between two events with text of one answer.
    pub gaps: Vec<Duration>,
    /// Of each answer: from its first to its last text, over the tokens between them.
    pub per_token: Vec<Duration>,
    /// Output tokens a second of each run, from the first request to the last answer.
    pub rates: Vec<f64>,
    /// Why requests failed.
    pub errors: Vec<String>,
}

/// One answer.
struct Answered {
    first: Duration,
    gaps: Vec<Duration>,
    /// As the server counts them.
    tokens: usize,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// A pause of the server after which a request counts as failed.
const SILENCE: Duration = Duration::from_secs(120);
/// Prompts are of tokens that every vocabulary of some size has, control tokens left out.
const PROMPT_TOKENS: std::ops::Range<u32> = 100..30_000;

// === impl Target ===

impl Target {
    /// The server at `url`, asked for the first model that it lists.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn new(url: &str) -> Result<Self> {
        // A connection for each request: some servers close idle ones without a word.
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).pool_max_idle_per_host(0);
        let http = http.read_timeout(SILENCE).build()?;
        let model = Client::new(url)?.model().await?;
        Ok(Self { http, url: format!("{}/v1/completions", url.trim_end_matches('/')), model })
    }

    /// One run, noted in `tally`.
    pub async fn run(&self, shape: Shape, tally: &mut Tally) {
        let next = AtomicUsize::new(0);
        let client = async || {
            let mut answers = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < shape.requests {
                answers.push(self.ask(shape).await);
            }
            answers
        };
        let began = Instant::now();
        let answers = join_all((0..shape.clients).map(|_| client())).await;
        let seconds = began.elapsed().as_secs_f64();
        let mut tokens = 0;
        for answer in answers.into_iter().flatten() {
            match answer {
                Ok(answer) => {
                    tokens += answer.tokens;
                    tally.note(answer);
                }
                Err(error) => tally.errors.push(format!("{error:#}")),
            }
        }
        tally.rates.push(tokens as f64 / seconds);
    }

    /// One request with a prompt that nobody sent before.
    async fn ask(&self, shape: Shape) -> Result<Answered> {
        let prompt: Vec<u32> = (0..shape.prompt_tokens).map(|_| fastrand::u32(PROMPT_TOKENS)).collect();
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": shape.output_tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        });
        let sent = Instant::now();
        let response = self.http.post(&self.url).json(&body).send().await?;
        if !response.status().is_success() {
            bail!("{}: {}", response.status(), response.text().await.unwrap_or_default());
        }
        let mut answer = Answered { first: Duration::ZERO, gaps: Vec::new(), tokens: 0 };
        let (mut last, mut events, mut bytes) = (None, Events::default(), response.bytes_stream());
        while let Some(part) = bytes.next().await {
            for event in events.push(&part?) {
                if event == "[DONE]" {
                    return answer.check(shape);
                }
                let chunk: Chunk =
                    serde_json::from_str(&event).with_context(|| format!("unexpected event {event}"))?;
                answer.note(&chunk, sent, &mut last, shape)?;
            }
        }
        bail!("the stream ended without [DONE]")
    }
}

// === impl Answered ===

impl Answered {
    fn note(&mut self, chunk: &Chunk, sent: Instant, last: &mut Option<Instant>, shape: Shape) -> Result<()> {
        if let Some(usage) = &chunk.usage {
            if usage.prompt_tokens != shape.prompt_tokens {
                bail!("{} prompt tokens counted, {} sent", usage.prompt_tokens, shape.prompt_tokens);
            }
            self.tokens = usage.completion_tokens;
        }
        if chunk.choices.iter().all(|choice| choice.text.is_empty()) {
            return Ok(());
        }
        let now = Instant::now();
        match last.replace(now) {
            None => self.first = now - sent,
            Some(before) => self.gaps.push(now - before),
        }
        Ok(())
    }

    /// An answer of another length would make the figures those of other work.
    fn check(self, shape: Shape) -> Result<Self> {
        if self.tokens != shape.output_tokens {
            bail!("{} tokens came, {} were asked for", self.tokens, shape.output_tokens);
        }
        Ok(self)
    }
}

// === impl Tally ===

impl Tally {
    fn note(&mut self, answer: Answered) {
        self.first.push(answer.first);
        if answer.tokens > 1 {
            self.per_token.push(answer.gaps.iter().sum::<Duration>() / (answer.tokens as u32 - 1));
        }
        self.gaps.extend(answer.gaps);
    }
}
