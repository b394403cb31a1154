//! Compute kernels behind safe functions.
//!
//! - [`cpu`]: the fast path on processors: matrices, attention, norms, rotary
//!   embedding, and the threads that run them.
//! - `cuda` (feature `cuda`): the same on NVIDIA cards.
//! - [`mod@reference`]: every op in plain scalar Rust, to test the fast ones against.
//!
//! Every result on processors is a function of its own row alone: the same bits whatever
//! other rows are in the call, however a prompt is cut into chunks, wherever
//! its pages lie and on any number of threads. With any instruction set too, but
//! one: tile registers ([`cpu::Isa::Amx`]) sum in an order of their own, and take
//! f32 as the sum of two bf16. Their results are close to the others'.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod draw;
pub mod reference;
pub mod shape;

pub use draw::Draw;
pub use shape::Shape;
