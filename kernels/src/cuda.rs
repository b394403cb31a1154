//! Kernels for NVIDIA cards: bf16 or fp16 in memory, or e4m3 with scales, f32 inside.
//!
//! - [`Gpu`]: a card, one stream on it and the kernels loaded there. Every op
//!   takes it first and is only enqueued when it returns.
//! - [`Half`]: numbers there, in the [`Dtype`] that the card was opened for.
//! - [`Graph`]: ops recorded once and replayed with one call.
//! - `embed`, `norm`, `rope`, `gate`, `rows`: what stands between matrix products.
//! - [`gemv`], and [`narrow`] on Hopper: products with few rows, limited by reading
//!   weights once; [`wide`]: with many on Hopper, also with gates; [`gemm`]: the others,
//!   through cuBLASLt.
//! - [`attention`]: over pages, of one new token a sequence or many.
//! - [`mod@shape`], [`mod@sample`]: tokens from logits; [`random`]: made-up weights.
//! - [`quantise`]: rows to e4m3, for [`NarrowScaled`] and [`GemmScaled`].
//! - [`Pieces`]: pages to frames and back; [`region`], [`nccl`]: memory shared with other
//!   processes, and pairs of cards.
//!
//! Matrices are row-major. Sources are `kernels/cuda/*.cu`, compiled when this
//! crate is built, those that touch such numbers once for each dtype; a file's name and a
//! function's in it name a kernel.

pub mod attention;
mod device;
pub mod embed;
mod error;
pub mod gate;
pub mod gemm;
pub mod gemv;
mod graph;
mod half;
mod image;
mod launch;
mod mark;
pub mod narrow;
pub mod nccl;
pub mod norm;
mod pieces;
mod pinned;
pub mod quantise;
pub mod random;
pub mod region;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod shape;
mod tensor_map;
mod view;
pub mod wide;

pub use cudarc;
pub use device::{Gpu, Memory};
pub use error::GpuError;
pub use gemm::{Gemm, GemmScaled};
pub use gemv::Gemv;
pub use graph::Graph;
pub use half::{Dtype, Half};
pub use launch::{Args, Grid, Kernel};
pub use mark::Mark;
pub use narrow::{Narrow, NarrowScaled};
pub use nccl::Nccl;
pub use pieces::{PieceCopy, Pieces};
pub use pinned::Pinned;
pub use region::{Mapped, Region, join};
pub use view::{Read, Scaled, ScaledMut, Weights, Write};
pub use wide::Wide;
