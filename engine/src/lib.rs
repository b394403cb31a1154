//! The engine: continuous batching over a paged KV cache.
//!
//! - [`Engine`]: `step()`: plan, forward, sample, commit
//! - [`EngineWorker`], [`EngineHandle`]: its thread, and how others reach it
//! - [`SequenceSpec`], [`SequenceEvent`]: what is submitted and what comes back
//! - `scheduler`: who computes how much in a step; preemption
//! - `guide`: the tokens that a grammar allows next, found off the engine's thread
//! - [`kv`]: page pool, prefix cache, pages as bytes
//! - [`sampler`]: logits to a token, the same for the same seed
//! - [`backend`]: trait [`Backend`](backend::Backend): plain data in, logits out; CPU and mock
//! - [`batch`]: input and output of one step
//! - [`EngineConfig`], [`EngineMetrics`], [`SubmitError`], [`EngineError`]

pub mod backend;
pub mod batch;
mod config;
mod engine;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guide;
pub mod kv;
mod metrics;
pub mod sampler;
mod scheduler;
mod sequence;
mod worker;

pub use config::{EngineConfig, SchedulerConfig};
pub use engine::{Engine, StepOutcome};
pub use error::{EngineError, SubmitError};
pub use metrics::EngineMetrics;
pub use sequence::{
    events::{SequenceEvent, SequenceEvents, TryRecvError},
    spec::{ChoiceSpec, Goal, SequenceSpec, StartFrom},
};
pub use worker::{EngineHandle, EngineLoad, EngineWorker};
