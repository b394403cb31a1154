//! HTTP in the ecosystem's words: routes of OpenAI and others in, JSON or SSE out.
//!
//! A call goes down this list and its answer comes back up:
//!
//! - [`serve`](fn@serve): accepts connections, one task each, and lets them end on shutdown; [`write_timeout`]: not for ever
//! - [`routes`]: which path does what; request ids and counting around every call
//! - [`host`]: whom a call is for; [`door`]: who may come in: API keys, tenants and their limits, CORS
//! - [`replay`]: calls with an `Idempotency-Key` are computed once
//! - [`body`]: bytes of a request within their limits; [`json`]: strict JSON; [`fields`]: typed fields by name
//! - [`openai`], [`vllm`], [`anthropic`], [`tgi`], [`sglang`]: dialects: routes, how their bodies become an [`ask`], how answers are
//!   written; [`crossroads`]: paths that two of them share
//! - [`files`], [`batches`]: calls that have time, by files; [`shelves`]: where they are kept, each kind on a [`shelf`]
//! - [`openapi`]: all of it described, from the types
//! - [`ask`]: a call in no dialect's words; [`grammars`]: what its answer must be; [`tools`]: what it may call
//! - [`texts`]: tokenizers by digest, and the bounded pool of threads that runs them
//! - [`validate`]: makes the [`Request`](baton_protocol::Request), in which nothing is optional
//! - [`patience`]: what headers say of a reader's patience
//! - [`calls`]: all of this in order, for one call
//! - [`dispatch`]: the seam to the coordinator
//! - [`generation`]: events of one or more answers as text, with [`choice_text`] and [`stop_strings`] for one choice, and
//!   [`parts`], which tells thoughts and calls from text
//! - [`reply`]: that text on its way out, whole or as SSE, in the words of a dialect
//! - [`error`]: every way to refuse, mapped once to HTTP
//! - [`metrics`]: what HTTP saw

mod anthropic;
mod ask;
mod batches;
mod body;
mod calls;
mod choice_text;
mod config;
mod crossroads;
mod dispatch;
mod door;
mod error;
mod fields;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod generation;
mod grammars;
mod host;
mod json;
mod metrics;
mod openai;
mod openapi;
mod parts;
mod patience;
mod replay;
mod reply;
mod routes;
mod serve;
mod sglang;
mod shelf;
mod shelves;
mod stop_strings;
#[cfg(test)]
mod tests;
mod texts;
mod tgi;
mod tools;
mod validate;
mod vllm;
mod write_timeout;

pub use batches::BatchLimits;
pub use config::{Config, ConfigError};
pub use dispatch::{Answer, Dispatch, KvPath, Readiness};
pub use door::{
    Door,
    keys::{KeyRing, KeysError, NewKey},
};
pub use metrics::HttpMetrics;
pub use openai::{embeddings::EmbeddingConfig, responses::ResponseLimits};
pub use replay::{Seat, Store as KeptAnswers, StoreError};
pub use serve::{FrontendError, Services, serve, serve_metrics, serve_routes};
pub use shelves::Shelves;
