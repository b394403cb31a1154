//! HTTP in the ecosystem's words: OpenAI routes in, JSON or SSE out.
//!
//! A call goes down this list and its answer comes back up:
//!
//! - [`serve`](fn@serve): accepts connections, one task each, and lets them end on shutdown; [`write_timeout`]: not for ever
//! - [`routes`]: which path does what; request ids and counting around every call
//! - [`body`]: bytes of a request within their limits; [`json`]: strict JSON; [`fields`]: typed fields by name
//! - [`parameters`], [`chat`], [`completions`]: what the two calls may hold
//! - [`texts`]: tokenizers by digest, and the bounded pool of threads that runs them
//! - [`validate`]: makes the [`Request`](baton_protocol::Request), in which nothing is optional
//! - [`calls`]: all of this in order, for one call
//! - [`dispatch`]: the seam to the coordinator
//! - [`generation`]: events of one or more answers as text, with [`choice_text`] and [`stop_strings`] for one choice
//! - [`reply`]: that text in OpenAI's shapes, whole or as SSE
//! - [`error`]: every way to refuse, mapped once to HTTP
//! - [`metrics`]: what HTTP saw

mod body;
mod calls;
mod chat;
mod choice_text;
mod completions;
mod config;
mod dispatch;
mod error;
mod fields;
mod generation;
mod json;
mod metrics;
mod parameters;
mod reply;
mod routes;
mod serve;
mod stop_strings;
#[cfg(test)]
mod tests;
mod texts;
mod validate;
mod write_timeout;

pub use config::{Config, ConfigError};
pub use dispatch::{Answer, Dispatch, KvPath, Readiness};
pub use metrics::HttpMetrics;
pub use serve::{FrontendError, Services, serve, serve_metrics};
