//! A pair of nodes: one control stream, one data path, one life.
//!
//! The decode node opens a session to a prefill node and keeps it until either
//! side ends it; it never comes back under the same number. Control messages
//! are numbered, and a gap ends the session like a lost socket does.
//!
//! - [`client`]: the decode node's pool of sessions; `connect` opens one, `receiving` is its state
//! - [`server`]: the prefill node's service; `sending` is a session's state
//! - `hello`: who fits whom; [`paths`]: which transport
//! - `control`: numbered messages
//! - `offers`: KV for the next prefill node, after one broke off
//! - `running`: the data thread, and the order in which a session ends

pub mod client;
mod connect;
mod control;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hello;
mod offers;
pub mod paths;
mod receiving;
mod running;
mod sending;
pub mod server;
#[cfg(test)]
mod tests;

use std::hint::black_box;

pub use client::{KvPeer, SessionReport, Sessions};
pub use paths::{PathReport, Tried};
pub use receiving::{Handoff, UnderWay};
pub use server::PrefillService;

/// 256 random bits.
pub(crate) fn secret() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

/// Compares without telling by its time where the difference is.
pub(crate) fn same_secret(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
    black_box(difference) == 0
}
