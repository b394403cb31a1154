use std::sync::Arc;

use super::*;
use crate::{cpu::Isa, reference};

fn random<E: Element>(random: &mut fastrand::Rng, len: usize) -> Vec<E> {
    (0..len).map(|_| E::from_f32(2.0 * random.f32() - 1.0)).collect()
}

fn widened<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// One for each instruction set, with different numbers of threads.
fn pools() -> Vec<Arc<ComputePool>> {
    let isas = Isa::supported().into_iter().enumerate();
    isas.map(|(i, isa)| ComputePool::with_isa(1 + i % 3, isa).unwrap()).collect()
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
        for (m, k, n) in [(1, 2, 1), (1, 64, 32), (3, 10, 33), (5, 34, 96), (13, 96, 40), (64, 30, 70)] {
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

#[test]
fn gated_product_agrees_with_reference() {
    let mut rng = fastrand::Rng::with_seed(9);
    let (m, k, n) = (14, 48, 80);
    let a: Vec<f32> = random(&mut rng, m * k);
    let [gate, up]: [Vec<bf16>; 2] = [random(&mut rng, n * k), random(&mut rng, n * k)];
    let packed = PackedMatrix::pack_gated(&gate, &up, k).unwrap();
    let [gate, up] = [widened(&gate), widened(&up)];
    for pool in pools() {
        let mut out = vec![f32::NAN; m * n];
        gemm_gated(&pool, &a, &packed, &mut out);
        for (row, out) in a.chunks(k).zip(out.chunks(n)) {
            let [gate, up] = [reference::matmul(&gate, row), reference::matmul(&up, row)];
            assert_close(out, &reference::silu_mul(&gate, &up), 1e-4);
        }
    }
}

fn row_is_the_same_in_any_batch<A: Element>() {
    let mut rng = fastrand::Rng::with_seed(11);
    let (m, k, n) = (150, 200, 96);
    let a: Vec<A> = random(&mut rng, m * k);
    let weights: Vec<bf16> = random(&mut rng, n * k);
    let packed = PackedMatrix::pack(&[&weights], k).unwrap();
    let mut all = vec![0.0; m * n];
    gemm(&pools()[0], &a, &packed, &mut all);
    for pool in pools() {
        for rows in 1..40 {
            let from = rng.usize(0..m - rows);
            let mut some = vec![0.0; rows * n];
            gemm(&pool, &a[from * k..][..rows * k], &packed, &mut some);
            assert_eq!(some, all[from * n..][..rows * n], "{rows} rows, {}", pool.isa().as_str());
        }
    }
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
