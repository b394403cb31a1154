//! Compute kernels behind safe functions.
//!
//! - [`cpu`]: the fast path on processors: matrices, attention, norms, rotary
//!   embedding, and the threads that run them.
//! - `cuda` (feature `cuda`): the same on NVIDIA cards.
//! - [`mod@reference`]: every op in plain scalar Rust, to test the fast ones against.
//!
//! Every result on processors is a function of its own row alone: the same bits whatever
//! other rows are in the call, however a prompt is cut into chunks, wherever
//! its pages lie, on any number of threads and with any instruction set.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod draw;
pub mod reference;

pub use draw::Draw;
