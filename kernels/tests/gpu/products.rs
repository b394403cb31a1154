//! Matrix products.

use baton_kernels::cuda::{
    Gemm, Gemv, Gpu, Half, Narrow, Weights, Wide,
    gate::Activation,
    gemm::{Sizes, Then},
    gemv::MAX_ROWS,
    narrow,
};

use crate::{
    assert_close, assert_within, gpus, is_sanitized, numbers, ops::activated, poisoned, put, random,
    tolerance, wide,
};

/// `sum over k of x[m][k] * w[n][k]`
fn product(x: &[f64], w: &[f32], k: usize) -> Vec<f64> {
    wide_product(x, &wide(w), k)
}

pub(crate) fn wide_product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let row =
        |x: &[f64]| -> Vec<f64> { w.chunks(k).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum()).collect() };
    x.chunks(k).flat_map(row).collect()
}

/// Outputs and inputs.
const SHAPES: [(usize, usize); 8] =
    [(1, 8), (17, 40), (48, 576), (96, 1536), (258, 264), (64, 4096), (31, 2056), (40, 14_336)];

#[test]
fn few_rows_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        for (n, k) in SHAPES {
            let w = random(&gpu, 1, n * k, 0.5);
            let w_there = put(&gpu, &w);
            let weights = || Weights { data: w_there.as_view(), outputs: n, inputs: k };
            gpu.synchronize().unwrap();
            for m in [1, 2, 7, 8, 9, MAX_ROWS] {
                let what = format!("{m}x{n}x{k}");
                let x = random(&gpu, 3, m * k, 1.0);
                let x_there = put(&gpu, &x);
                let expected = product(&wide(&x), &w, k);

                let mut out = poisoned(&gpu, m * n);
                Gemv::new(weights()).run(&gpu, &x_there, &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, &what);

                let mut logits = gpu.upload(&vec![f32::NAN; m * n]).unwrap();
                Gemv::new(weights()).run_f32(&gpu, &x_there, &mut logits).unwrap();
                let logits: Vec<f64> = gpu.download(&logits).unwrap().into_iter().map(f64::from).collect();
                assert_within(&logits, &expected, 1e-4, &what);

                let before = random(&gpu, 4, m * n, 1.0);
                let mut sum = put(&gpu, &before);
                Gemv::new(weights()).add(&gpu, &x_there, &mut sum).unwrap();
                let expected: Vec<f64> =
                    wide(&before).iter().zip(&expected).map(|(before, x)| before + x).collect();
                assert_close(&gpu, &numbers(&gpu, &sum), &expected, &format!("added {what}"));
            }
        }
    }
}

#[test]
fn few_rows_are_gated_on_the_way() {
    for gpu in gpus() {
        for (width, k) in [(1, 8), (9, 64), (1536, 576), (520, 1032)] {
            let w = random(&gpu, 1, 2 * width * k, 0.3);
            let w_there = put(&gpu, &w);
            gpu.synchronize().unwrap();
            for (m, activation) in [(1, Activation::Silu), (8, Activation::GeluTanh), (13, Activation::Silu)]
            {
                let x = random(&gpu, 3, m * k, 1.0);
                let products = product(&wide(&x), &w, k);
                let expected: Vec<f64> = products
                    .chunks(2 * width)
                    .flat_map(|row| {
                        let (gates, ups) = row.split_at(width);
                        gates.iter().zip(ups).map(|(g, u)| activated(activation, *g) * u).collect::<Vec<_>>()
                    })
                    .collect();
                let weights = Weights { data: w_there.as_view(), outputs: 2 * width, inputs: k };
                let mut out = poisoned(&gpu, m * width);
                Gemv::new(weights).gated(&gpu, activation, &put(&gpu, &x), &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, &format!("{m}x{width}x{k}"));
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_whatever_rows_are_beside_it() {
    for gpu in gpus() {
        let (n, k) = (272, 1544);
        let w = put(&gpu, &random(&gpu, 1, n * k, 0.5));
        gpu.synchronize().unwrap();
        let x = put(&gpu, &random(&gpu, 3, MAX_ROWS * k, 1.0));
        let run = |first: usize, rows: usize| {
            let weights = Weights { data: w.as_view(), outputs: n, inputs: k };
            let mut out = poisoned(&gpu, rows * n);
            Gemv::new(weights).run(&gpu, &x.slice(first * k..(first + rows) * k), &mut out).unwrap();
            numbers(&gpu, &out)
        };
        let all = run(0, MAX_ROWS);
        for (first, rows) in [(0, 1), (15, 1), (5, 8), (3, 9), (1, 15)] {
            assert_eq!(run(first, rows), all[first * n..(first + rows) * n], "{first} {rows}");
        }
    }
}

/// Outputs and inputs: one block, ends of tiles and stages, and shared-out inputs.
const NARROW_SHAPES: [(usize, usize); 6] =
    [(8, 8), (136, 72), (960, 576), (576, 1536), (264, 4096), (128, 14_336)];

#[test]
fn narrow_products_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        for (n, k) in NARROW_SHAPES {
            let w = random(&gpu, 1, n * k, 0.5);
            let w_there = put(&gpu, &w);
            gpu.synchronize().unwrap();
            let weights = || Weights { data: w_there.as_view(), outputs: n, inputs: k };
            let Some(narrow) = Narrow::new(&gpu, weights()) else { return };
            for m in [1, 8, 9, 31, 64, 65, 128] {
                let what = format!("{m}x{n}x{k}");
                let x = random(&gpu, 3, m * k, 1.0);
                let x_there = put(&gpu, &x);
                let expected = product(&wide(&x), &w, k);

                let mut out = poisoned(&gpu, m * n);
                narrow.run(&gpu, &x_there, &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, &what);

                let mut logits = gpu.upload(&vec![f32::NAN; m * n]).unwrap();
                narrow.run_f32(&gpu, &x_there, &mut logits).unwrap();
                let logits: Vec<f64> = gpu.download(&logits).unwrap().into_iter().map(f64::from).collect();
                assert_within(&logits, &expected, 1e-4, &what);

                let before = random(&gpu, 4, m * n, 1.0);
                let mut sum = put(&gpu, &before);
                narrow.add(&gpu, &x_there, &mut sum).unwrap();
                let sums: Vec<f64> =
                    wide(&before).iter().zip(&expected).map(|(before, x)| before + x).collect();
                assert_close(&gpu, &numbers(&gpu, &sum), &sums, &format!("added {what}"));

                if n % 16 == 0 {
                    let activation = if m % 2 == 0 { Activation::Silu } else { Activation::GeluTanh };
                    let mut out = poisoned(&gpu, m * n / 2);
                    narrow.gated(&gpu, activation, &x_there, &mut out).unwrap();
                    let expected = gated(activation, &expected, n);
                    assert_close(&gpu, &numbers(&gpu, &out), &expected, &format!("gated {what}"));
                }
            }
        }
    }
}

#[test]
fn a_row_of_a_narrow_product_is_the_same_bits_whatever_rows_are_beside_it() {
    for gpu in gpus() {
        for (n, k) in [(272, 1544), (4096, 4096)] {
            let w = put(&gpu, &random(&gpu, 1, n * k, 0.5));
            let x = put(&gpu, &random(&gpu, 3, narrow::MAX_ROWS * k, 1.0));
            gpu.synchronize().unwrap();
            let run = |first: usize, rows: usize| {
                let weights = Weights { data: w.as_view(), outputs: n, inputs: k };
                let mut out = poisoned(&gpu, rows * n);
                let x = x.slice(first * k..(first + rows) * k);
                Narrow::new(&gpu, weights)?.run(&gpu, &x, &mut out).unwrap();
                Some(numbers(&gpu, &out))
            };
            let Some(all) = run(0, narrow::MAX_ROWS) else { return };
            for (first, rows) in [(0, 1), (127, 1), (5, 8), (3, 16), (64, 31), (1, 64)] {
                assert_eq!(run(first, rows).unwrap(), all[first * n..(first + rows) * n], "{first} {rows}");
            }
        }
    }
}

/// What becomes of rows of gates and ups.
fn gated(activation: Activation, products: &[f64], n: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (gates, ups) = row.split_at(n / 2);
        gates.iter().zip(ups).map(|(gate, up)| activated(activation, *gate) * up).collect()
    };
    products.chunks(n).flat_map(row).collect()
}

#[test]
fn wide_products_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        // Less than a tile and a stage, ends of both, several tiles, and more stages than the ring has.
        for (n, k) in [(16, 8), (272, 72), (960, 576), (528, 1536)] {
            let w = random(&gpu, 1, n * k, 0.5);
            let w_there = put(&gpu, &w);
            let weights = Weights { data: w_there.as_view(), outputs: n, inputs: k };
            let Some(wide_product) = Wide::new(&gpu, weights) else { return };
            for m in [1, 129, 300] {
                let what = format!("{m}x{n}x{k}");
                let x = random(&gpu, 3, m * k, 1.0);
                let x_there = put(&gpu, &x);
                let expected = product(&wide(&x), &w, k);

                let mut out = poisoned(&gpu, m * n);
                wide_product.run(&gpu, &x_there, &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, &what);

                let before = random(&gpu, 4, m * n, 1.0);
                let mut sum = put(&gpu, &before);
                wide_product.add(&gpu, &x_there, &mut sum).unwrap();
                let sums: Vec<f64> = wide(&before).iter().zip(&expected).map(|(a, b)| a + b).collect();
                assert_close(&gpu, &numbers(&gpu, &sum), &sums, &format!("added {what}"));

                for activation in [Activation::Silu, Activation::GeluTanh] {
                    let mut out = poisoned(&gpu, m * n / 2);
                    wide_product.gated(&gpu, activation, &x_there, &mut out).unwrap();
                    let expected = gated(activation, &expected, n);
                    assert_close(&gpu, &numbers(&gpu, &out), &expected, &format!("gated {what}"));
                }
            }
        }
    }
}

/// More tiles than clusters, so that each takes several, in more than one band.
#[test]
fn large_a_row_of_a_wide_product_is_the_same_bits_whatever_rows_are_beside_it() {
    for gpu in gpus() {
        let (n, k, rows) = (8192, 136, if is_sanitized() { 700 } else { 2500 });
        let w = put(&gpu, &random(&gpu, 1, n * k, 0.5));
        let x = put(&gpu, &random(&gpu, 3, rows * k, 1.0));
        let run = |first: usize, rows: usize| {
            let weights = Weights { data: w.as_view(), outputs: n, inputs: k };
            let mut out = poisoned(&gpu, rows * n / 2);
            let x = x.slice(first * k..(first + rows) * k);
            Wide::new(&gpu, weights)?.gated(&gpu, Activation::Silu, &x, &mut out).unwrap();
            Some(numbers(&gpu, &out))
        };
        let Some(all) = run(0, rows) else { return };
        for (first, rows) in [(0, 1), (rows - 1, 1), (5, 8), (100, 200), (140, rows - 150)] {
            assert!(
                run(first, rows).unwrap() == all[first * n / 2..(first + rows) * n / 2],
                "{first} {rows}"
            );
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for gpu in gpus() {
        let w = gpu.zeros::<Half>(64 * 64).unwrap();
        let weights = |outputs, inputs| Weights { data: w.as_view(), outputs, inputs };
        let (x, mut out) = (gpu.zeros::<Half>(64).unwrap(), gpu.zeros::<Half>(64).unwrap());
        assert!(Gemv::new(weights(64, 63)).run(&gpu, &x, &mut out).is_err());
        assert!(Gemv::new(weights(64, 72)).run(&gpu, &x, &mut out).is_err());
        assert!(Gemv::new(weights(64, 64)).run(&gpu, &x, &mut out.slice_mut(1..)).is_err());
        assert!(Gemv::new(weights(64, 64)).run(&gpu, &gpu.zeros(17 * 64).unwrap(), &mut out).is_err());
        if let Some(narrow) = Narrow::new(&gpu, weights(64, 64)) {
            assert!(narrow.run(&gpu, &x, &mut out.slice_mut(1..)).is_err());
            assert!(narrow.run(&gpu, &gpu.zeros(129 * 64).unwrap(), &mut out).is_err());
            assert!(Narrow::new(&gpu, weights(64, 63)).is_none());
        }
        let gemm = Gemm::new(&gpu, None).unwrap();
        assert!(gemm.run(&weights(64, 64), &x.slice(1..), &mut out).is_err());
        Gemv::new(weights(64, 64)).run(&gpu, &x, &mut out).unwrap();
        gpu.synchronize().unwrap();
    }
}

fn many_rows(gpu: &Gpu, gemm: &Gemm, sizes: Sizes) {
    let Sizes { n, k, m } = sizes;
    let what = format!("{sizes:?}");
    let (w, x, before) = (random(gpu, 1, n * k, 0.5), random(gpu, 2, m * k, 1.0), random(gpu, 3, m * n, 1.0));
    let (w, x_there) = ((put(gpu, &w), w), put(gpu, &x));
    let expected = product(&wide(&x), &w.1, k);
    let weights = Weights { data: w.0.as_view(), outputs: n, inputs: k };
    let mut out = poisoned(gpu, m * n);
    gemm.run(&weights, &x_there, &mut out).unwrap();
    assert_close(gpu, &numbers(gpu, &out), &expected, &what);
    let mut logits = gpu.upload(&vec![f32::NAN; m * n]).unwrap();
    gemm.run(&weights, &x_there, &mut logits).unwrap();
    let logits: Vec<f64> = gpu.download(&logits).unwrap().into_iter().map(f64::from).collect();
    assert_within(&logits, &expected, 1e-3, &what);
    let mut sum = put(gpu, &before);
    gemm.add(&weights, &x_there, &mut sum).unwrap();
    let expected: Vec<f64> = wide(&before).iter().zip(&expected).map(|(before, x)| before + x).collect();
    // Some algorithms round the product before they add it.
    assert_within(&wide(&numbers(gpu, &sum)), &expected, 2.0 * tolerance(gpu), &what);
}

#[test]
fn large_many_rows_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        let folder = tempfile::tempdir().unwrap();
        let gemm = Gemm::new(&gpu, Some(folder.path())).unwrap();
        let shapes =
            [(1, 64, 64), (7, 96, 576), (64, 960, 576), (129, 576, 1536), (300, 1000, 64), (33, 512, 4096)];
        let shapes = shapes.map(|(m, n, k)| Sizes { n, k, m });
        for sizes in shapes {
            many_rows(&gpu, &gemm, sizes);
        }
        // The same with algorithms found by timing, and found again on disk.
        assert_eq!(gemm.tune(&shapes, Then::Store).unwrap().len(), shapes.len());
        for sizes in shapes {
            many_rows(&gpu, &gemm, sizes);
        }
        let again = Gemm::new(&gpu, Some(folder.path())).unwrap();
        assert!(again.tune(&shapes, Then::Store).unwrap().is_empty());
        many_rows(&gpu, &again, Sizes { n: 960, k: 576, m: 50 });
    }
}
