//! What a user can set for the HTTP room.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use axum::http::HeaderValue;
use baton_trust::HttpsConfig;
use serde::Deserialize;

use crate::{
    batches::BatchLimits,
    openai::{embeddings::EmbeddingConfig, responses::ResponseLimits},
};

/// Settings of the API, section `[frontend]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the API listens. Beyond loopback only with keys; they travel in clear without `tls`.
    pub listen: SocketAddr,
    /// The certificate that clients are shown over HTTPS, and its key; none: HTTP.
    pub tls: Option<HttpsConfig>,
    /// The file of API keys, which `baton key new` adds to; none: everyone on this machine may call.
    pub keys_file: Option<PathBuf>,
    /// Where answers to calls with an `Idempotency-Key`, files, batches and stored responses survive a restart;
    /// none: they go with the process.
    pub state_dir: Option<PathBuf>,
    /// Files and batches.
    pub batches: BatchLimits,
    /// Embeddings.
    pub embeddings: EmbeddingConfig,
    /// Responses that are stored.
    pub responses: ResponseLimits,
    /// How long those answers can be had again.
    pub kept_seconds: u64,
    /// Most of them, running ones included; the oldest go first.
    pub max_kept_answers: usize,
    /// Most bytes of them.
    pub max_kept_bytes: usize,
    /// How long such a call goes on when nobody reads its answer.
    pub detach_grace_ms: u64,
    /// Origins of pages that may call from a browser, or `*` alone for all.
    pub cors_origins: Vec<String>,
    /// Connections served at once; more wait in the listener's queue.
    pub max_connections: usize,
    /// Largest body of a call.
    pub max_body_bytes: usize,
    /// Largest head (request line and headers) of a call.
    pub max_header_bytes: usize,
    /// Most headers of a call.
    pub max_headers: usize,
    /// Time for a head to arrive; also how long an idle connection is kept.
    pub header_timeout_ms: u64,
    /// Time for a body to arrive.
    pub body_timeout_ms: u64,
    /// How long a client may read nothing of an answer that is there.
    pub write_timeout_ms: u64,
    /// Time for a whole answer.
    pub request_timeout_ms: u64,
    /// How long running answers may take to end after shutdown was asked for.
    pub grace_ms: u64,
    /// Streams sent at once; a call for one more is refused.
    pub max_streams: usize,
    /// Most answers to one prompt: `n`, `best_of`.
    pub max_choices: u32,
    /// Most prompts of one call.
    pub max_prompts: usize,
    /// Most messages of one call.
    pub max_messages: usize,
    /// Most tokens of a prompt; 0: what the model's context leaves.
    pub max_input_tokens: u32,
    /// Most tokens of a prompt and its answer; 0: the model's context.
    pub max_total_tokens: u32,
    /// Most alternatives with log-probabilities for each token, at most 20.
    pub max_logprobs: u32,
    /// Most log-probabilities of prompts' tokens in one call, those of alternatives included.
    pub max_prompt_logprobs: usize,
    /// Most stop strings of one call.
    pub max_stop_strings: usize,
    /// Longest stop string.
    pub max_stop_bytes: usize,
    /// Most `stop_token_ids` of one call.
    pub max_stop_token_ids: usize,
    /// Most entries of `logit_bias`.
    pub max_logit_biases: usize,
    /// Most tools of one call.
    pub max_tools: usize,
    /// Longest JSON Schema, regular expression or grammar for an answer.
    pub max_grammar_bytes: usize,
    /// Most levels of a JSON Schema for an answer.
    pub max_schema_depth: usize,
    /// Threads that render templates and tokenize.
    pub text_threads: usize,
    /// Calls that may wait for one of those threads; more are refused.
    pub text_queue: usize,
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("frontend.{setting} must be {expected}")]
pub struct ConfigError {
    /// Its name.
    pub setting: &'static str,
    /// What would do.
    pub expected: &'static str,
}

/// Prompt bytes per token of context: a longer text cannot fit, so it is not tokenized at all.
pub const PROMPT_BYTES_PER_TOKEN: usize = 16;

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            tls: None,
            keys_file: None,
            state_dir: None,
            batches: BatchLimits::default(),
            embeddings: EmbeddingConfig::default(),
            responses: ResponseLimits::default(),
            kept_seconds: 86_400,
            max_kept_answers: 4096,
            max_kept_bytes: 64 << 20,
            detach_grace_ms: 10_000,
            cors_origins: Vec::new(),
            max_connections: 4096,
            max_body_bytes: 4 << 20,
            max_header_bytes: 16 << 10,
            max_headers: 64,
            header_timeout_ms: 60_000,
            body_timeout_ms: 10_000,
            write_timeout_ms: 60_000,
            request_timeout_ms: 600_000,
            grace_ms: 30_000,
            max_streams: 2048,
            max_choices: 8,
            max_prompts: 32,
            max_messages: 2048,
            max_input_tokens: 0,
            max_total_tokens: 0,
            max_logprobs: 20,
            max_prompt_logprobs: 1 << 18,
            max_stop_strings: 4,
            max_stop_bytes: 256,
            max_stop_token_ids: 64,
            max_logit_biases: 1024,
            max_tools: 128,
            max_grammar_bytes: 64 << 10,
            max_schema_depth: 48,
            text_threads: 2,
            text_queue: 256,
        }
    }
}

impl Config {
    /// Whether every setting can work.
    ///
    /// # Errors
    /// The first one that cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("max_connections", self.max_connections as u64),
            ("max_body_bytes", self.max_body_bytes as u64),
            ("max_headers", self.max_headers as u64),
            ("header_timeout_ms", self.header_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("kept_seconds", self.kept_seconds),
            ("max_kept_answers", self.max_kept_answers as u64),
            ("max_streams", self.max_streams as u64),
            ("max_choices", u64::from(self.max_choices)),
            ("max_prompts", self.max_prompts as u64),
            ("max_messages", self.max_messages as u64),
            ("max_stop_bytes", self.max_stop_bytes as u64),
            ("text_threads", self.text_threads as u64),
            ("embeddings.max_inputs", self.embeddings.max_inputs as u64),
        ];
        if let Some((setting, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError { setting, expected: "positive" });
        }
        if self.max_header_bytes < 8192 {
            return Err(ConfigError { setting: "max_header_bytes", expected: "at least 8192" });
        }
        if self.max_choices > 128 {
            return Err(ConfigError { setting: "max_choices", expected: "at most 128" });
        }
        let is_origin = |origin: &String| origin.contains("://") && HeaderValue::from_str(origin).is_ok();
        if self.cors_origins != ["*"] && !self.cors_origins.iter().all(is_origin) {
            return Err(ConfigError {
                setting: "cors_origins",
                expected: "origins like https://a.example, or * alone",
            });
        }
        if self.max_logprobs > 20 {
            return Err(ConfigError { setting: "max_logprobs", expected: "at most 20" });
        }
        self.batches.validate()?;
        self.responses.validate()
    }

    pub(crate) fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }

    pub(crate) fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    pub(crate) fn detach_grace(&self) -> Duration {
        Duration::from_millis(self.detach_grace_ms)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_zeroes_are_not() {
        Config::default().validate().unwrap();
        let broken = Config { body_timeout_ms: 0, ..Config::default() };
        assert_eq!(broken.validate().unwrap_err().to_string(), "frontend.body_timeout_ms must be positive");
    }
}
