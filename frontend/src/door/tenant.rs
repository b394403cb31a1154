//! Whose a call is, and how much they may ask for.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::rate::Bucket;
use crate::error::{ApiError, Rate};

/// Limits of a tenant; absent: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Calls for answers.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers together.
    pub tokens_per_minute: Option<u32>,
}

/// Whose calls share a prefix cache and limits.
#[derive(Debug)]
pub struct Tenant {
    pub name: String,
    pub limits: Limits,
    left: Mutex<Left>,
}

/// What is left of the limits that are set.
#[derive(Debug)]
struct Left {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

// === impl Tenant ===

impl Tenant {
    /// With everything left.
    pub fn new(name: &str, limits: Limits) -> Self {
        let full = |limit: Option<u32>| limit.map(|limit| Bucket::new(limit, Instant::now()));
        let left =
            Left { requests: full(limits.requests_per_minute), tokens: full(limits.tokens_per_minute) };
        Self { name: name.to_owned(), limits, left: Mutex::new(left) }
    }

    /// Everyone, where there are no keys.
    pub fn anyone() -> Self {
        Self::new("default", Limits::default())
    }

    /// Counts a call for an answer. Tokens are counted when they are known, the
    /// prompt's first: a call is let in while any are left.
    ///
    /// # Errors
    /// When one of the limits is used up; then nothing is counted.
    pub fn enter(&self, now: Instant) -> Result<(), ApiError> {
        let mut left = self.left.lock();
        let Left { requests, tokens } = &mut *left;
        for (bucket, rate) in [(&mut *requests, Rate::Requests), (tokens, Rate::Tokens)] {
            let Some(bucket) = bucket else { continue };
            let wait = bucket.until(1, now);
            if wait > Duration::ZERO {
                return Err(ApiError::RateLimit { rate, limit: bucket.limit(), wait });
            }
        }
        if let Some(requests) = requests {
            requests.spend(1, now);
        }
        Ok(())
    }

    /// Counts tokens of a prompt or an answer.
    pub fn spend_tokens(&self, tokens: u32) {
        if let Some(bucket) = &mut self.left.lock().tokens {
            bucket.spend(tokens, Instant::now());
        }
    }

    /// Says what is left, in the headers that OpenAI's clients know.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let (now, mut left) = (Instant::now(), self.left.lock());
        let Left { requests, tokens } = &mut *left;
        let names = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        for (bucket, [limit, remaining, reset]) in [requests, tokens].into_iter().zip(names) {
            let Some(bucket) = bucket else { continue };
            headers.insert(limit, bucket.limit().into());
            headers.insert(remaining, bucket.left(now).into());
            if let Ok(wait) = HeaderValue::from_str(&words(bucket.until_full(now))) {
                headers.insert(reset, wait);
            }
        }
    }
}

/// A duration as OpenAI writes it: `6m0s`, `59.5s`, `20ms`.
fn words(wait: Duration) -> String {
    let millis = wait.as_millis();
    match (millis / 60_000, millis % 60_000) {
        (0, millis) if millis < 1000 => format!("{millis}ms"),
        (0, millis) => format!("{}s", millis as f64 / 1000.0),
        (minutes, millis) => format!("{minutes}m{}s", millis / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (millis, expected) in [(0, "0ms"), (20, "20ms"), (1500, "1.5s"), (360_400, "6m0s")] {
            assert_eq!(words(Duration::from_millis(millis)), expected);
        }
    }
}
