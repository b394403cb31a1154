//! The cluster seen and steered over HTTP, by people and by scripts.
//!
//! - [`router`]: the routes over a coordinator; each reads it or tells it something
//! - [`views`]: what is written and read, as JSON
//! - `error`: how it refuses
//! - `openapi`: the routes described, from the types
//!
//! There are no keys: the listener is loopback's.

mod error;
mod openapi;
mod routes;
#[cfg(test)]
mod tests;
pub mod views;

pub use routes::router;
