//! Prefill nodes and a decode node in one process, with mock engines, over
//! real gRPC and real data sockets on loopback.
//!
//! - `sandbox`: the nodes, and how to end one
//! - `call`: one attempt as a coordinator makes it; every event is checked
//! - the other files: what must hold

#![expect(clippy::unwrap_used, reason = "tests, and what only tests use")]

mod call;
mod loss;
mod pressure;
mod resume;
mod returns;
mod sandbox;
mod split;
