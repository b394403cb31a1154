//! The fast path on processors.
//!
//! - [`pool`]: the threads ([`ComputePool`]) and how work is dealt to them.
//! - `simd`: instruction sets ([`Isa`]) behind one trait of sixteen lanes.
//! - [`element`]: [`Element`], what activations and cached keys and values are stored as.
//! - [`packed`]: [`PackedMatrix`], weights laid out for the tile kernel, of bf16, four or eight bits.
//! - `tile`: the innermost product, a few rows by 32 columns in registers.
//! - `amx`: the same in Intel's tile registers, 32 rows by 32 columns.
//! - [`gemm`](mod@gemm): activations times weights.
//! - [`activation`]: nonlinearities of a gate.
//! - [`attention`](mod@attention): paged causal attention, of prompts and of single tokens alike.
//! - [`norm`], [`rope`], [`softcap`]: the small ops.
//! - `disjoint`: one output, written by many threads.
//!
//! The numerics, which all exact instruction sets share to the bit (subnormal
//! numbers apart, which some of them flush): a sum over `k` runs from the
//! first to the last pair of elements in one accumulator, the odd element of a
//! pair before the even one. That is the order of `vdpbf16ps`.
//!
//! Tile registers ([`Isa::Amx`]) have the order of `tdpbf16ps`: of each 32 elements
//! the even products are summed up, and the odd ones, and the two added to the
//! accumulator. An f32 is two numbers of bf16, the second the rest of the first:
//! sixteen bits. Matrices and heads whose `k` is not a multiple of 32 are multiplied
//! as without them, whatever the number of rows.
//!
//! Weights that are whole numbers in groups of 32 are multiplied with activations that are
//! made so too, the same bits with all instructions (`gemm/quants.rs`), except by an exact
//! pool ([`ComputePool::exact`]), which unpacks them.

pub mod activation;
#[cfg_attr(not(target_arch = "x86_64"), path = "cpu/amx/absent.rs")]
mod amx;
pub mod attention;
mod disjoint;
pub mod element;
pub mod gemm;
pub mod norm;
pub mod packed;
pub mod pool;
pub mod rope;
mod simd;
pub mod softcap;
mod tile;

pub use activation::Activation;
pub use attention::{AttentionSequence, AttentionShape, attention};
pub use element::{Element, round_into};
pub use gemm::{gemm, gemm_add, gemm_gated};
pub use norm::{RmsNorm, rms_norm, rms_norm_add, rms_norm_in_place};
pub use packed::{PackedMatrix, Part, Q4_1, Q8_0, ReadRows, ShapeError, Unit, quantise_q4_1, quantise_q8_0};
pub use pool::{ComputePool, PoolError};
pub use rope::Rotation;
pub use simd::Isa;
pub use softcap::soft_cap;
