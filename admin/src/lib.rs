//! The cluster seen and steered, over HTTP and over gRPC, by people and by scripts.
//!
//! - `operations`: what can be asked; each reads the coordinator or tells it something
//! - [`router`]: as routes over a coordinator
//! - [`service`]: as a service of gRPC
//! - [`views`]: what is written and read
//! - `error`: how it refuses
//! - `openapi`: the routes described, from the types
//!
//! There are no keys: the listener is loopback's.

mod error;
mod grpc;
mod openapi;
mod operations;
mod routes;
#[cfg(test)]
mod tests;
pub mod views;

pub use grpc::service;
pub use routes::router;
