use std::sync::Arc;

use super::*;
use crate::{
    cpu::{Isa, Q4_1, Q8_0, quantise_q4_1, quantise_q8_0},
    reference,
};

fn random<E: Element>(random: &mut fastrand::Rng, len: usize) -> Vec<E> {
    (0..len).map(|_| E::from_f32(2.0 * random.f32() - 1.0)).collect()
}

fn widened<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// One for each instruction set, with different numbers of threads.
fn pools() -> Vec<Arc<ComputePool>> {
    let isas = Isa::supported().into_iter().enumerate();
    isas.map(|(i, isa)| ComputePool::with_isa(3 - i % 3, isa).unwrap()).collect()
}

/// A pool of one thread whose products are the same bits.
fn alike(pool: &ComputePool) -> Arc<ComputePool> {
    let isa = if pool.isa().is_exact() { Isa::Portable } else { pool.isa() };
    ComputePool::with_isa(1, isa).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }
}

fn agrees_with_reference<A: Element>() {
    let mut rng = fastrand::Rng::with_seed(7);
    for pool in pools() {
        for (m, k, n) in
            [(1, 2, 1), (1, 64, 32), (3, 10, 33), (5, 34, 96), (13, 96, 40), (64, 30, 70), (70, 160, 70)]
        {
            let a: Vec<A> = random(&mut rng, m * k);
            let weights: Vec<bf16> = random(&mut rng, n * k);
            let wide = widened(&weights);
            let expected: Vec<f32> =
                widened(&a).chunks(k).flat_map(|row| reference::matmul(&wide, row)).collect();
            let packed = PackedMatrix::pack(&[&weights], k).unwrap();
            let mut out = vec![f32::NAN; m * n];
            gemm(&pool, &a, &packed, &mut out);
            assert_close(&out, &expected, 1e-4);
            gemm_add(&pool, &a, &packed, &mut out);
            assert_close(&out, &expected.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), 2e-4);
        }
    }
}

#[test]
fn bf16_product_agrees_with_reference() {
    agrees_with_reference::<bf16>();
}

#[test]
fn f32_product_agrees_with_reference() {
    agrees_with_reference::<f32>();
}

fn activated(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    y as f32
}

#[test]
fn gated_product_agrees_with_reference() {
    let mut rng = fastrand::Rng::with_seed(9);
    let (m, k, n) = (14, 48, 80);
    let a: Vec<f32> = random(&mut rng, m * k);
    let [gate, up]: [Vec<bf16>; 2] = [random(&mut rng, n * k), random(&mut rng, n * k)];
    let packed = PackedMatrix::pack_gated(&gate, &up, k).unwrap();
    let [gate, up] = [widened(&gate), widened(&up)];
    for (pool, activation) in
        pools().iter().flat_map(|pool| [(pool, Activation::Silu), (pool, Activation::GeluTanh)])
    {
        let mut out = vec![f32::NAN; m * n];
        gemm_gated(pool, &a, &packed, activation, &mut out);
        for (row, out) in a.chunks(k).zip(out.chunks(n)) {
            let [gate, up] = [reference::matmul(&gate, row), reference::matmul(&up, row)];
            let expected: Vec<f32> =
                gate.iter().zip(&up).map(|(gate, up)| activated(activation, *gate) * up).collect();
            assert_close(out, &expected, 1e-4);
        }
    }
}

#[test]
fn activations_are_close_for_all_inputs() {
    let packed = PackedMatrix::pack_gated(&[bf16::ONE; 32], &[bf16::ONE; 32], 2).unwrap();
    let inputs: Vec<[f32; 2]> = (-1200..1200).map(|step| [step as f32 / 50.0, 0.0]).collect();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let mut out = vec![0.0; inputs.len() * 16];
        gemm_gated(&pools()[0], inputs.as_flattened(), &packed, activation, &mut out);
        for ([x, _], out) in inputs.iter().zip(out.chunks(16)) {
            let expected = activated(activation, *x) * x;
            assert!((out[0] - expected).abs() <= 1e-6 * expected.abs() + 1e-6, "{activation:?} {x}");
        }
    }
}

fn row_is_the_same_in_any_batch<A: Element>() {
    let mut rng = fastrand::Rng::with_seed(11);
    let (m, n) = (150, 96);
    // Tile registers take blocks of 32 inputs.
    for k in [200, 224] {
        let a: Vec<A> = random(&mut rng, m * k);
        let weights: Vec<bf16> = random(&mut rng, n * k);
        let packed = PackedMatrix::pack(&[&weights], k).unwrap();
        for pool in pools() {
            let mut all = vec![0.0; m * n];
            gemm(&alike(&pool), &a, &packed, &mut all);
            for rows in 1..70 {
                let from = rng.usize(0..m - rows);
                let mut some = vec![0.0; rows * n];
                gemm(&pool, &a[from * k..][..rows * k], &packed, &mut some);
                assert_eq!(some, all[from * n..][..rows * n], "{rows} rows of {k}, {}", pool.isa().as_str());
            }
        }
    }
}

/// Blocks of four bits, blocks of eight, and the weights that both are close to.
fn quantised(rng: &mut fastrand::Rng, len: usize) -> (Vec<Q4_1>, Vec<Q8_0>) {
    let values: Vec<bf16> = random(rng, len);
    (quantise_q4_1(&values), quantise_q8_0(&values))
}

/// A matrix that was packed in any form, as plain bf16.
fn unpacked(matrix: &PackedMatrix) -> PackedMatrix {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    for (row, to) in values.chunks_mut(matrix.cols()).enumerate() {
        matrix.read_row(row, to);
    }
    let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
    PackedMatrix::pack(&[&values], matrix.cols()).unwrap()
}

fn exact_pools() -> Vec<Arc<ComputePool>> {
    let isas = Isa::supported().into_iter().filter(|isa| isa.is_exact()).enumerate();
    isas.map(|(i, isa)| ComputePool::exact_with_isa(3 - i % 3, isa)).collect()
}

fn exact_grouped_products_are_those_of_unpacked_weights<A: Element>() {
    let mut rng = fastrand::Rng::with_seed(13);
    // More inputs than are unpacked at once; fewer outputs than whole panels.
    for (k, n) in [(32, 1), (320, 70), (544, 96)] {
        let (four, eight) = quantised(&mut rng, n * k);
        let matrices = [PackedMatrix::pack(&[&four], k).unwrap(), PackedMatrix::pack(&[&eight], k).unwrap()];
        for matrix in &matrices {
            let plain = unpacked(matrix);
            for pool in exact_pools() {
                for m in [1, 2, 5, 12, 13, 40] {
                    let a: Vec<A> = random(&mut rng, m * k);
                    let mut out = [vec![f32::NAN; m * n], vec![f32::NAN; m * n]];
                    gemm(&pool, &a, matrix, &mut out[0]);
                    gemm(&alike(&pool), &a, &plain, &mut out[1]);
                    assert!(out[0] == out[1], "{m} x {k} x {n}, {}", pool.isa().as_str());
                }
            }
        }
    }
}

#[test]
fn exact_grouped_bf16_products_are_those_of_unpacked_weights() {
    exact_grouped_products_are_those_of_unpacked_weights::<bf16>();
}

#[test]
fn exact_grouped_f32_products_are_those_of_unpacked_weights() {
    exact_grouped_products_are_those_of_unpacked_weights::<f32>();
}

/// Products of whole numbers are the same on all processors, alone and among others, and
/// close to what they stand for.
fn grouped_products_are_close_and_the_same_everywhere<A: Element>() {
    let mut rng = fastrand::Rng::with_seed(17);
    for (k, n) in [(32, 1), (320, 70), (544, 96)] {
        let (four, eight) = quantised(&mut rng, n * k);
        for matrix in [PackedMatrix::pack(&[&four], k).unwrap(), PackedMatrix::pack(&[&eight], k).unwrap()] {
            let m = 40;
            // Groups of very different sizes.
            let scale = |i: usize| [1.0, 3e-5, 1e4][i / 32 % 3];
            let a: Vec<A> = (0..m * k).map(|i| A::from_f32(scale(i) * (rng.f32() - 0.5))).collect();
            let mut all = vec![f32::NAN; m * n];
            gemm(&ComputePool::with_isa(1, Isa::Portable).unwrap(), &a, &matrix, &mut all);
            let mut expected = vec![f32::NAN; m * n];
            gemm(&ComputePool::exact(1).unwrap(), &a, &unpacked(&matrix), &mut expected);
            // Weights were rounded to bf16 there, activations to a 32,512th of their group's greatest here.
            assert_close(&all, &expected, 1e4 * 32.0 * 2.0_f32.powi(-9));
            for pool in pools() {
                for rows in [1, 2, 3, 4, 5, 12, 13, 16, 17, 33, 40] {
                    let from = rng.usize(0..=m - rows);
                    let mut some = vec![f32::NAN; rows * n];
                    gemm(&pool, &a[from * k..][..rows * k], &matrix, &mut some);
                    assert!(
                        some == all[from * n..][..rows * n],
                        "{rows} x {k} x {n}, {}",
                        pool.isa().as_str()
                    );
                }
            }
        }
    }
}

#[test]
fn grouped_bf16_products_are_close_and_the_same_everywhere() {
    grouped_products_are_close_and_the_same_everywhere::<bf16>();
}

#[test]
fn grouped_f32_products_are_close_and_the_same_everywhere() {
    grouped_products_are_close_and_the_same_everywhere::<f32>();
}

#[test]
fn activations_keep_twelve_bits_and_what_is_no_number() {
    // Each weight is one, so the product is the sum.
    let weights = PackedMatrix::pack(&[&quantise_q8_0(&[bf16::ONE; 32])], 32).unwrap();
    let product = |values: [f32; 32]| {
        let mut out = [f32::NAN];
        gemm(&pools()[0], &values, &weights, &mut out);
        out[0]
    };
    let mut values = [0.0; 32];
    assert_eq!(product(values), 0.0);
    values[3] = 2.0;
    values[9] = -1.0 / 4096.0;
    assert!((product(values) - (2.0 - 1.0 / 4096.0)).abs() < 1e-3 + 2.0 / 4064.0);
    values[20] = f32::INFINITY;
    assert!(!product(values).is_finite());
    values[20] = f32::NAN;
    assert!(product(values).is_nan());
    assert_eq!(product([1e-38; 32]), 0.0);
}

#[test]
fn bf16_row_is_the_same_in_any_batch() {
    row_is_the_same_in_any_batch::<bf16>();
}

#[test]
fn f32_row_is_the_same_in_any_batch() {
    row_is_the_same_in_any_batch::<f32>();
}

#[test]
#[should_panic(expected = "output of another shape")]
fn output_of_another_shape_is_refused() {
    let packed = PackedMatrix::pack(&[&[bf16::ONE; 64]], 2).unwrap();
    gemm(&pools()[0], &[bf16::ONE; 4], &packed, &mut [0.0; 63]);
}

#[test]
fn no_rows_are_no_work() {
    let packed = PackedMatrix::pack(&[&[bf16::ONE; 64]], 2).unwrap();
    gemm::<bf16>(&pools()[0], &[], &packed, &mut []);
}
