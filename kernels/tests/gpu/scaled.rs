//! Rows in e4m3, and their products.

use std::cell::RefCell;

use baton_kernels::{
    cuda::{
        GemmScaled, Gpu, Half, NarrowScaled, Scaled, ScaledMut,
        cudarc::driver::CudaSlice,
        gate::Activation,
        gemm::{Sizes, Then},
        narrow,
        norm::Norm,
        quantise::{quantise, quantise_norm},
    },
    reference,
};

use crate::{
    assert_within,
    bench::{SHAPES, cell, filled, micros},
    gpu, gpus, numbers,
    ops::activated,
    poisoned,
    products::wide_product,
    put, random, rounded, wide,
};

/// The tensor cores keep some fourteen bits of sums of e4m3, whatever the dtype.
const TOLERANCE: f64 = 8e-3;

#[track_caller]
fn assert_close(gpu: &Gpu, found: &[f32], expected: &[f64], what: &str) {
    assert_within(&wide(found), expected, TOLERANCE, &format!("{:?}: {what}", gpu.dtype()));
}

/// A matrix on the card, and what it stands for.
struct Matrix {
    data: CudaSlice<u8>,
    scales: CudaSlice<f32>,
    values: Vec<f64>,
    width: usize,
}

// === impl Matrix ===

impl Matrix {
    fn random(gpu: &Gpu, seed: u64, rows: usize, width: usize) -> Self {
        let values = random(gpu, seed, rows * width, 1.0);
        let (data, scales) = quantised(gpu, rows, width, |out| {
            quantise(gpu, &put(gpu, &values), out).unwrap();
        });
        let expected = values.chunks(width).flat_map(|row| {
            let (row, scale) = reference::quantised(row);
            row.into_iter().map(move |x| f64::from(x) * f64::from(scale)).collect::<Vec<_>>()
        });
        Self { data, scales, values: expected.collect(), width }
    }

    fn view(&self) -> Scaled<'_> {
        Scaled::new(&self.data, &self.scales, self.width)
    }
}

fn quantised(
    gpu: &Gpu,
    rows: usize,
    width: usize,
    write: impl FnOnce(&mut ScaledMut<'_>),
) -> (CudaSlice<u8>, CudaSlice<f32>) {
    let mut data = gpu.upload(&vec![0x7f_u8; rows * width]).unwrap();
    let mut scales = gpu.upload(&vec![f32::NAN; rows]).unwrap();
    write(&mut ScaledMut::new(&mut data, &mut scales, width));
    gpu.synchronize().unwrap();
    (data, scales)
}

#[test]
fn rows_are_rounded_as_in_the_reference() {
    for gpu in gpus() {
        for (rows, width) in [(1, 8), (3, 576), (5, 4096), (2, 14_336), (2, 32_768)] {
            let mut x = random(&gpu, 1, rows * width, 3.0);
            // Small ones too, and a row of nothing.
            x.iter_mut().step_by(3).for_each(|x| *x = rounded(&gpu, *x * 1e-3));
            x[(rows - 1) * width..].fill(0.0);
            let there = put(&gpu, &x);
            let (data, scales) = quantised(&gpu, rows, width, |out| quantise(&gpu, &there, out).unwrap());
            let (data, scales) = (gpu.download(&data).unwrap(), gpu.download(&scales).unwrap());
            for ((row, found), scale) in x.chunks(width).zip(data.chunks(width)).zip(scales) {
                let found: Vec<f32> = found.iter().map(|byte| reference::of_e4m3_byte(*byte)).collect();
                assert_eq!((found, scale), reference::quantised(row), "{rows}x{width}");
            }
        }
    }
}

#[test]
fn normed_rows_are_rounded() {
    for gpu in gpus() {
        for (rows, width) in [(1, 8), (3, 576), (5, 4096), (2, 32_768)] {
            let (x, gain) = (random(&gpu, 1, rows * width, 2.0), random(&gpu, 2, width, 1.5));
            let (x_there, gain_there) = (put(&gpu, &x), put(&gpu, &gain));
            let norm = Norm { weight: gain_there.as_view(), eps: 1e-5 };
            let (data, scales) = quantised(&gpu, rows, width, |out| {
                quantise_norm(&gpu, &norm, &x_there, out).unwrap();
            });
            let (data, scales) = (gpu.download(&data).unwrap(), gpu.download(&scales).unwrap());
            for ((row, found), scale) in x.chunks(width).zip(data.chunks(width)).zip(scales) {
                for (byte, x) in found.iter().zip(reference::rms_norm(row, &gain, 1e-5)) {
                    let (found, half_a_step) =
                        (reference::of_e4m3_byte(*byte) * scale, x.abs() / 15.0 + scale / 1024.0);
                    assert!((found - x).abs() <= half_a_step, "{rows}x{width}: {found}, not {x}");
                }
                let greatest =
                    found.iter().map(|byte| reference::of_e4m3_byte(*byte).abs()).fold(0.0, f32::max);
                assert!(greatest == 448.0, "{greatest} of 448");
            }
        }
    }
}

/// Outputs and inputs: one block, ends of tiles and stages, and shared-out inputs.
const SHAPES_OF_FEW: [(usize, usize); 6] =
    [(16, 16), (144, 144), (960, 576), (576, 1536), (272, 4096), (128, 14_336)];

#[test]
fn narrow_products_of_scaled_rows_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        for (n, k) in SHAPES_OF_FEW {
            let w = Matrix::random(&gpu, 1, n, k);
            let Ok(narrow) = NarrowScaled::new(&gpu, w.view()) else { return };
            for m in [1, 8, 9, 31, 64, 65, 128] {
                let what = format!("{m}x{n}x{k}");
                let x = Matrix::random(&gpu, 3, m, k);
                let expected = wide_product(&x.values, &w.values, k);
                let mut out = poisoned(&gpu, m * n);
                narrow.run(&gpu, &x.view(), &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, &what);

                let before = random(&gpu, 4, m * n, 1.0);
                let mut sum = put(&gpu, &before);
                narrow.add(&gpu, &x.view(), &mut sum).unwrap();
                let sums: Vec<f64> =
                    wide(&before).iter().zip(&expected).map(|(before, x)| before + x).collect();
                assert_close(&gpu, &numbers(&gpu, &sum), &sums, &format!("added {what}"));

                let activation = if m % 2 == 0 { Activation::Silu } else { Activation::GeluTanh };
                let gated = expected.chunks(n).flat_map(|row| {
                    let (gates, ups) = row.split_at(n / 2);
                    let one = |(gate, up): (&f64, &f64)| activated(activation, *gate) * up;
                    gates.iter().zip(ups).map(one).collect::<Vec<_>>()
                });
                let mut out = poisoned(&gpu, m * n / 2);
                narrow.gated(&gpu, activation, &x.view(), &mut out).unwrap();
                let out = numbers(&gpu, &out);
                assert_close(&gpu, &out, &gated.collect::<Vec<_>>(), &format!("gated {what}"));
            }
        }
    }
}

#[test]
fn a_scaled_row_is_the_same_bits_whatever_rows_are_beside_it() {
    for gpu in gpus() {
        for (n, k) in [(272, 1552), (4096, 4096)] {
            let w = Matrix::random(&gpu, 1, n, k);
            let x = Matrix::random(&gpu, 3, narrow::MAX_ROWS, k);
            let Ok(narrow) = NarrowScaled::new(&gpu, w.view()) else { return };
            let run = |first: usize, rows: usize| {
                let data = x.data.slice(first * k..(first + rows) * k);
                let some = Scaled { data, scales: x.scales.slice(first..first + rows), width: k };
                let mut out = poisoned(&gpu, rows * n);
                narrow.run(&gpu, &some, &mut out).unwrap();
                numbers(&gpu, &out)
            };
            let all = run(0, narrow::MAX_ROWS);
            for (first, rows) in [(0, 1), (127, 1), (5, 8), (3, 16), (64, 31), (1, 64)] {
                assert_eq!(run(first, rows), all[first * n..(first + rows) * n], "{first} {rows}");
            }
        }
    }
}

#[test]
fn large_products_of_scaled_rows_give_the_sums_of_the_formula() {
    for gpu in gpus() {
        if gpu.capability() != (9, 0) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let gemm = GemmScaled::new(&gpu, Some(folder.path())).unwrap();
        let shapes = [(16, 64, 64), (65, 960, 576), (129, 576, 1536), (300, 1008, 64), (33, 512, 4096)];
        let shapes = shapes.map(|(m, n, k)| Sizes { n, k, m });
        let check = |gemm: &GemmScaled, sizes: Sizes| {
            let Sizes { n, k, m } = sizes;
            let (w, x) = (Matrix::random(&gpu, 1, n, k), Matrix::random(&gpu, 2, m, k));
            let expected = wide_product(&x.values, &w.values, k);
            let mut out = poisoned(&gpu, m * n);
            gemm.run(&w.view(), &x.view(), &mut out).unwrap();
            assert_close(&gpu, &numbers(&gpu, &out), &expected, &format!("{sizes:?}"));
            let before = random(&gpu, 3, m * n, 1.0);
            let mut sum = put(&gpu, &before);
            gemm.add(&w.view(), &x.view(), &mut sum).unwrap();
            let expected: Vec<f64> =
                wide(&before).iter().zip(&expected).map(|(before, x)| before + x).collect();
            assert_within(&wide(&numbers(&gpu, &sum)), &expected, 2.0 * TOLERANCE, &format!("{sizes:?}"));
        };
        shapes.into_iter().for_each(|sizes| check(&gemm, sizes));
        assert_eq!(gemm.tune(&shapes, Then::Add).unwrap().len(), shapes.len());
        shapes.into_iter().for_each(|sizes| check(&gemm, sizes));
    }
}

#[test]
fn scaled_shapes_that_do_not_fit_are_refused() {
    for gpu in gpus() {
        let (w, x) = (Matrix::random(&gpu, 1, 64, 64), Matrix::random(&gpu, 2, 1, 64));
        let mut out = gpu.zeros::<Half>(64).unwrap();
        let other = Matrix::random(&gpu, 2, 1, 48);
        let gemm = GemmScaled::new(&gpu, None).unwrap();
        assert!(gemm.run(&w.view(), &other.view(), &mut out).is_err());
        assert!(gemm.run(&w.view(), &x.view(), &mut out.slice_mut(1..)).is_err());
        let odd = Matrix::random(&gpu, 1, 64, 56);
        assert!(NarrowScaled::new(&gpu, odd.view()).is_err());
        if let Ok(narrow) = NarrowScaled::new(&gpu, w.view()) {
            assert!(narrow.run(&gpu, &other.view(), &mut out).is_err());
            assert!(narrow.run(&gpu, &x.view(), &mut out.slice_mut(1..)).is_err());
        }
        let (mut data, mut scales) = (gpu.zeros(64).unwrap(), gpu.zeros(2).unwrap());
        let short = gpu.zeros::<Half>(64).unwrap();
        assert!(quantise(&gpu, &short, &mut ScaledMut::new(&mut data, &mut scales, 64)).is_err());
        gpu.synchronize().unwrap();
    }
}

#[test]
#[ignore = "prints figures"]
fn bench_scaled() {
    let gpu = gpu();
    println!("\nnarrow products of e4m3, weights not in L2: us, GB/s of weights");
    for m in [1, 8, 16, 32, 64, 128] {
        print!("M={m:<4}");
        for (name, n, k) in &SHAPES[..4] {
            let (n, k, copies) = (*n, *k, (300 << 20) / (n * k) + 1);
            let quantised = |rows: usize| {
                let (mut data, mut scales) = (gpu.unset(rows * k).unwrap(), gpu.unset(rows).unwrap());
                let x = filled(&gpu, 5, rows * k, 0.05);
                quantise(&gpu, &x, &mut ScaledMut::new(&mut data, &mut scales, k)).unwrap();
                gpu.synchronize().unwrap();
                (data, scales)
            };
            let ((w, scales), x, out) = (quantised(copies * n), quantised(m), cell(&gpu, m * n));
            let one = |gpu: &Gpu, i: usize| {
                let data = w.slice(i * n * k..(i + 1) * n * k);
                let weights = Scaled { data, scales: scales.slice(i * n..(i + 1) * n), width: k };
                let x = Scaled::new(&x.0, &x.1, k);
                NarrowScaled::new(gpu, weights).unwrap().run(gpu, &x, &mut *out.borrow_mut())
            };
            let one = micros(&gpu, |gpu| (0..copies).try_for_each(|i| one(gpu, i))) / copies as f64;
            print!("  {name} {one:.1} us {:.0}", (n * k) as f64 / one / 1e3);
        }
        println!();
    }
    for (m, width) in [(1, 4096), (1, 14_336), (64, 14_336), (2048, 14_336)] {
        let (mut data, mut scales) = (gpu.unset(m * width).unwrap(), gpu.unset(m).unwrap());
        let (x, out) = (filled(&gpu, 6, m * width, 1.0), ScaledMut::new(&mut data, &mut scales, width));
        let out = RefCell::new(out);
        let each =
            micros(&gpu, |gpu| (0..20).try_for_each(|_| quantise(gpu, &x, &mut out.borrow_mut()))) / 20.0;
        println!("quantise {m}x{width}: {each:.2} us");
    }
}
