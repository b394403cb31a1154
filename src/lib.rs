//! The binary's parts.
//!
//! - [`args`]: what the user typed; [`config`]: what it means
//! - [`serve`]: composes roles; [`compute`]: the process's one model and pool; [`worker_node`]: one prefill or decode node
//! - [`demo`], [`chat`], [`batch`], [`admin`], [`pull`], [`certs`], [`key`], [`bench`], [`simulate`], [`plan`], [`manual`]: the other commands
//! - [`client`]: the OpenAI API from the other side; [`terminal`], [`telemetry`], [`tasks`]: words for people, logs and metrics

pub mod admin;
pub mod allocator;
pub mod args;
pub mod batch;
pub mod bench;
pub mod certs;
pub mod chat;
pub mod client;
pub mod compute;
pub mod config;
pub mod demo;
pub mod doctor;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod key;
pub mod manual;
pub mod plan;
pub mod pull;
pub mod serve;
pub mod simulate;
pub mod tasks;
pub mod telemetry;
pub mod terminal;
pub mod worker_node;
