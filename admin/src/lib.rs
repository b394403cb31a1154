//! The cluster seen and steered, over HTTP and over gRPC, by people and by scripts.
//!
//! - [`Desk`]: what both stand on: the coordinator, who may come, the `audit` of what was done
//! - [`Ledger`]: the file of acts, each line chained to the one before
//! - `operations`: what can be asked; each reads the coordinator or tells it something
//! - [`router`]: as routes over a coordinator
//! - [`service`]: as a service of gRPC
//! - `playground`: the API for users, for the console alone
//! - [`views`]: what is written and read
//! - `error`: how it refuses
//! - `openapi`: the routes described, from the types
//!
//! The listener is loopback's; keys, if there are any, tell operators of one machine apart.

mod audit;
mod desk;
mod error;
mod grpc;
mod ledger;
mod openapi;
mod operations;
mod playground;
mod routes;
#[cfg(test)]
mod tests;
pub mod views;

pub use desk::{Desk, Owner};
pub use grpc::service;
pub use ledger::{Chain, Ledger, LedgerError};
pub use routes::router;
