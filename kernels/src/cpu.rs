//! The fast path on processors.
//!
//! - [`pool`]: the threads ([`ComputePool`]) and how work is dealt to them.
//! - `simd`: instruction sets ([`Isa`]) behind one trait of sixteen lanes.
//! - [`element`]: [`Element`], what activations and cached keys and values are stored as.
//! - [`packed`]: [`PackedMatrix`], weights laid out for the tile kernel.
//! - `tile`: the innermost product, a few rows by 32 columns in registers.
//! - [`gemm`](mod@gemm): activations times weights.
//! - [`attention`](mod@attention): paged causal attention, of prompts and of single tokens alike.
//! - [`norm`], [`rope`]: the small ops.
//! - `disjoint`: one output, written by many threads.
//!
//! The numerics, which all instruction sets share to the bit (subnormal
//! numbers apart, which some of them flush): a sum over `k` runs from the
//! first to the last pair of elements in one accumulator, the odd element of a
//! pair before the even one. That is the order of `vdpbf16ps`.

pub mod attention;
mod disjoint;
pub mod element;
pub mod gemm;
pub mod norm;
pub mod packed;
pub mod pool;
pub mod rope;
mod simd;
mod tile;

pub use attention::{AttentionSequence, AttentionShape, attention};
pub use element::{Element, round_into};
pub use gemm::{gemm, gemm_add, gemm_gated};
pub use norm::{RmsNorm, rms_norm};
pub use packed::{PackedMatrix, ShapeError};
pub use pool::{ComputePool, PoolError};
pub use rope::Rotation;
pub use simd::Isa;
