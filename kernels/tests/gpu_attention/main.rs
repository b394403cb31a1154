//! Attention on a card against the plain formula. Needs a card: without one every
//! test fails. `scripts/test-gpu` runs them.
//!
//! - `fixture`: pools, tables and what should come out.
//! - `decode`, `prefill`: the two ways in.
//! - `bench`: figures, on demand.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

mod bench;
mod decode;
mod fixture;
mod prefill;
