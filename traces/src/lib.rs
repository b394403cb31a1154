//! Where the time of a request goes, as spans of OpenTelemetry, across processes.
//!
//! A span is begun with the `traceparent` (W3C Trace Context) of what it is a part of, and gives
//! one to whoever does a part of it: the frontend takes a caller's and hands its own on with the
//! request, through coordinator and decode node to the prefill node. Without a collector nothing
//! is made, and a caller's `traceparent` is passed on as it came, if it is one.
//!
//! - [`config`]: where spans go, and of how many requests
//! - [`export`]: sends them there
//! - [`span`]: one piece of work

pub mod config;
pub mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod span;

pub use config::TracesConfig;
pub use export::{Exporter, TracesError, export};
pub use span::Span;

#[cfg(test)]
mod tests;
