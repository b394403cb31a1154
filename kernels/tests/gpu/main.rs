//! Ops on a card against plain formulas in f64. Needs a card: without one every
//! test fails. `scripts/test-gpu` runs them.
//!
//! - `ops`: what stands between matrix products; `rope`: the write of keys and values too.
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
mod rope;
mod scaled;
mod shapes;
mod step;

use baton_kernels::cuda::{Dtype, Gpu, Half, Read, cudarc::driver::CudaSlice};

/// The first card.
fn gpu() -> Gpu {
    Gpu::open(0, Dtype::Bf16).expect("these tests need an NVIDIA card")
}

/// The first card, computing in each dtype in turn.
fn gpus() -> impl Iterator<Item = Gpu> {
    let open = |dtype| Gpu::open(0, dtype).expect("these tests need an NVIDIA card");
    Dtype::ALL.into_iter().map(open)
}

/// Whether a sanitizer looks on, which takes a thousand times as long.
fn is_sanitized() -> bool {
    std::env::var_os("BATON_SANITIZED").is_some()
}

/// As the card holds it.
fn rounded(gpu: &Gpu, value: f32) -> f32 {
    gpu.dtype().value(gpu.dtype().round(value))
}

/// Random numbers from [-scale, scale), rounded.
fn random(gpu: &Gpu, seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rounded(gpu, scale * (2.0 * random.f32() - 1.0))).collect()
}

/// Numbers brought to the card.
fn put(gpu: &Gpu, values: &[f32]) -> CudaSlice<Half> {
    let halves: Vec<Half> = values.iter().map(|value| gpu.dtype().round(*value)).collect();
    gpu.upload(&halves).unwrap()
}

/// Numbers that the card holds.
fn numbers(gpu: &Gpu, memory: &impl Read<Half>) -> Vec<f32> {
    gpu.download(memory).unwrap().into_iter().map(|half| gpu.dtype().value(half)).collect()
}

/// Device memory that shows what was not written.
fn poisoned(gpu: &Gpu, len: usize) -> CudaSlice<Half> {
    put(gpu, &vec![f32::NAN; len])
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// Rounding to the card's dtype, counting that of intermediate values.
fn tolerance(gpu: &Gpu) -> f64 {
    match gpu.dtype() {
        Dtype::Bf16 => 8e-3,
        Dtype::F16 => 1e-3,
    }
}

/// Each element is within rounding of what it should be, and all were written.
#[track_caller]
fn assert_close(gpu: &Gpu, found: &[f32], expected: &[f64], what: &str) {
    assert_within(&wide(found), expected, tolerance(gpu), &format!("{:?}: {what}", gpu.dtype()));
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
