//! Ops on a card against plain formulas in f64. Needs a card: without one every
//! test fails. `scripts/test-gpu` runs them.
//!
//! - `ops`: what stands between matrix products.
//! - `products`: matrix products; `scaled`: those of rows in e4m3, and how they get there.
//! - `shapes`: logits changed before a draw.
//! - `pieces`: frames of pages.
//! - `overlap`: chains of ops that overlap and are replayed.
//! - `bench`, `step`: figures, on demand.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

mod bench;
mod ops;
mod overlap;
mod pieces;
mod products;
mod scaled;
mod shapes;
mod step;

use baton_kernels::cuda::{Gpu, cudarc::driver::CudaSlice};
use half::bf16;

/// The first card.
fn gpu() -> Gpu {
    Gpu::open(0).expect("these tests need an NVIDIA card")
}

/// Random numbers from [-scale, scale), rounded.
fn random(seed: u64, len: usize, scale: f32) -> Vec<bf16> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| bf16::from_f32(scale * (2.0 * random.f32() - 1.0))).collect()
}

/// Device memory that shows what was not written.
fn poisoned(gpu: &Gpu, len: usize) -> CudaSlice<bf16> {
    gpu.upload(&vec![bf16::NAN; len]).unwrap()
}

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Each element is within rounding to bf16 of what it should be, counting the
/// rounding of intermediate values, and all were written.
#[track_caller]
fn assert_close(found: &[bf16], expected: &[f64], what: &str) {
    assert_within(&wide(found), expected, 8e-3, what);
}

/// The error is at most `tolerance` of the element, or of the root mean square of all.
#[track_caller]
fn assert_within(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = expected.iter().map(|x| x * x).sum::<f64>() / expected.len().max(1) as f64;
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = tolerance * expected.abs().max(square.sqrt());
        // Written so that NaN fails.
        assert!((found - expected).abs() <= bound, "{what}: element {i} is {found}, not {expected}");
    }
}
