//! One answer as it comes.

use std::{collections::HashMap, time::Duration};

use reqwest::{Response, header::HeaderMap};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Events, Outcome, Phases};

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// The first text of a stream.
    pub first: Option<Instant>,
    /// Between two events with text.
    pub gaps: Vec<Duration>,
    /// When nothing more came.
    pub end: Instant,
    /// All text of it.
    pub text: String,
    /// As the server counts tokens.
    pub usage: Option<Usage>,
    /// Where the server says that its time went.
    pub phases: Option<Phases>,
}

/// Tokens, as a server counts them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: usize,
    #[serde(default)]
    pub(super) completion_tokens: usize,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    baton_bill: Option<HashMap<String, Value>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<usize>,
}

/// An event of a stream, or all of an answer.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default, alias = "message")]
    delta: Option<Words>,
}

/// Text by the names that servers give it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Words {
    content: Option<String>,
    /// Some say it by both names.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

// === impl Usage ===

impl Usage {
    /// Tokens of the prompt that were not computed anew; none: the server does not say.
    pub(super) fn cached_tokens(&self) -> Option<usize> {
        self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens)
    }

    fn phases(&self) -> Option<Phases> {
        let bill = self.baton_bill.as_ref()?;
        let ms = |name: &str| bill.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        Some(Phases {
            queue_ms: ms("queue_ms"),
            prefill_ms: ms("prefill_ms"),
            transfer_ms: ms("transfer_ms"),
            wait_ms: ms("exposed_ms"),
            decode_ms: ms("decode_ms"),
        })
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn failed(why: String) -> Self {
        Self {
            outcome: Outcome::Failed { why },
            first: None,
            gaps: Vec::new(),
            end: Instant::now(),
            text: String::new(),
            usage: None,
            phases: None,
        }
    }

    /// Reads all of it.
    pub(super) async fn read(response: Response, streams: bool) -> Self {
        let mut answer = Self::failed("the answer broke off".to_owned());
        answer.phases = server_timing(response.headers());
        let status = response.status().as_u16();
        let says_when = response.headers().contains_key("retry-after");
        let read = match response.status().is_success() {
            true if streams => answer.read_stream(response).await,
            true => answer.read_whole(response).await,
            false => Ok(match response.text().await {
                Ok(body) if status == 429 || status == 503 => Outcome::Refused { status, says_when, body },
                Ok(body) => Outcome::Failed { why: format!("{status}: {body}") },
                Err(error) => Outcome::Failed { why: format!("{status}: {error}") },
            }),
        };
        answer.outcome = read.unwrap_or_else(|error| Outcome::Failed { why: in_full(&error) });
        answer.end = Instant::now();
        answer
    }

    async fn read_whole(&mut self, response: Response) -> reqwest::Result<Outcome> {
        let body = response.bytes().await?;
        Ok(match serde_json::from_slice(&body) {
            Ok(chunk) => self.take(chunk).map_or(Outcome::Answered, |why| Outcome::Failed { why }),
            Err(error) => Outcome::Failed { why: format!("not an answer: {error}") },
        })
    }

    async fn read_stream(&mut self, mut response: Response) -> reqwest::Result<Outcome> {
        let (mut events, mut last) = (Events::default(), None);
        while let Some(bytes) = response.chunk().await? {
            // What comes together came at one time.
            let now = Instant::now();
            events.push(&bytes);
            while let Some(data) = events.next_data() {
                if data == "[DONE]" {
                    // What follows tells nothing, but leaves the connection usable.
                    while response.chunk().await?.is_some() {}
                    return Ok(Outcome::Answered);
                }
                let chunk = match serde_json::from_str::<Chunk>(&data) {
                    Ok(chunk) => chunk,
                    Err(error) => return Ok(Outcome::Failed { why: format!("{error} in event {data}") }),
                };
                let before = self.text.len();
                if let Some(why) = self.take(chunk) {
                    return Ok(Outcome::Failed { why });
                }
                if self.text.len() > before {
                    match last.replace(now) {
                        None => self.first = Some(now),
                        Some(before) => self.gaps.push(now - before),
                    }
                }
            }
        }
        Ok(Outcome::Failed { why: "the stream ended without [DONE]".to_owned() })
    }

    /// Notes what a chunk says; returns an error that it tells.
    fn take(&mut self, chunk: Chunk) -> Option<String> {
        for choice in chunk.choices {
            let Words { content, reasoning, reasoning_content } = choice.delta.unwrap_or_default();
            for text in [choice.text, reasoning.or(reasoning_content), content].into_iter().flatten() {
                self.text.push_str(&text);
            }
        }
        if let Some(usage) = chunk.usage {
            self.phases = usage.phases().or(self.phases);
            self.usage = Some(usage);
        }
        let error = chunk.error?;
        Some(error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned))
    }
}

/// Phases as a header that comes before an answer has them.
fn server_timing(headers: &HeaderMap) -> Option<Phases> {
    let header = headers.get("server-timing")?.to_str().ok()?;
    let mut phases = Phases::default();
    for part in header.split(',') {
        let (name, rest) = part.trim().split_once(';')?;
        let ms = rest.split(';').find_map(|field| field.trim().strip_prefix("dur=")?.parse().ok())?;
        match name {
            "queue" => phases.queue_ms = ms,
            "prefill" => phases.prefill_ms = ms,
            "transfer" => phases.transfer_ms = ms,
            "wait" => phases.wait_ms = ms,
            "decode" => phases.decode_ms = ms,
            _ => {}
        }
    }
    Some(phases)
}

/// An error with its causes.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
