//! Embedding, norms, gates, rows, the likeliest token.

use baton_kernels::{
    Draw,
    cuda::{
        Gpu, Weights,
        embed::{Tokens, embed},
        gate::{Activation, gate},
        norm::{Heads, Norm},
        random::fill_uniform,
        rows,
        sample::sample,
    },
    reference,
};

use crate::{assert_close, assert_within, gpu, gpus, numbers, poisoned, put, random, rounded, wide};

#[test]
fn embeds_known_and_drawn_tokens() {
    for gpu in gpus() {
        for (hidden, vocab, rows, scale) in [(8, 3, 1, 1.0_f32), (576, 50, 33, 1.0), (4104, 11, 7, 24.0)] {
            let table = random(&gpu, 1, vocab * hidden, 1.0);
            let known: Vec<i32> = (0..rows).map(|row| (row * 7 % vocab) as i32).collect();
            let drawn = [vocab as i32 - 1, 0, 1];
            let mut tokens = known.clone();
            tokens[rows / 2] = -1;
            tokens[rows - 1] = -3;
            let device = put(&gpu, &table);
            let weights = Weights { data: device.as_view(), outputs: vocab, inputs: hidden };
            let (tokens_there, drawn_there) = (gpu.upload(&tokens).unwrap(), gpu.upload(&drawn).unwrap());
            let there = Tokens { rows: tokens_there.as_view(), drawn: Some(drawn_there.as_view()) };
            let mut out = poisoned(&gpu, rows * hidden);
            embed(&gpu, &weights, &there, scale, &mut out).unwrap();
            let expected: Vec<f32> = tokens
                .iter()
                .map(|&token| if token < 0 { drawn[(-1 - token) as usize] } else { token } as usize)
                .flat_map(|token| table[token * hidden..(token + 1) * hidden].iter())
                .map(|x| rounded(&gpu, x * scale))
                .collect();
            assert_eq!(numbers(&gpu, &out), expected);
        }
    }
}

fn normed(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let width = weight.len();
    let rows = x.chunks(width).flat_map(|row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        row.iter().zip(weight).map(move |(x, weight)| x * scale * f64::from(*weight)).collect::<Vec<_>>()
    });
    rows.collect()
}

#[test]
fn norms_and_sums_are_those_of_the_formulas() {
    for gpu in gpus() {
        for (width, rows) in [(8, 1), (576, 5), (1000, 3), (4096, 17), (4104, 2), (14_336, 3), (32_768, 2)] {
            let (x, delta, weight) = (
                random(&gpu, 1, rows * width, 2.0),
                random(&gpu, 2, rows * width, 1.0),
                random(&gpu, 3, width, 1.5),
            );
            let (weight_there, delta_there) = (put(&gpu, &weight), put(&gpu, &delta));
            let norm = Norm { weight: weight_there.as_view(), eps: 1e-5 };

            let mut x_there = put(&gpu, &x);
            let mut out = poisoned(&gpu, rows * width);
            norm.run(&gpu, &x_there, &mut out).unwrap();
            assert_close(&gpu, &numbers(&gpu, &out), &normed(&wide(&x), &weight, 1e-5), "norm");
            assert_eq!(numbers(&gpu, &x_there), x);

            let mut out = poisoned(&gpu, rows * width);
            norm.add(&gpu, &mut x_there, &delta_there, &mut out).unwrap();
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, d)| rounded(&gpu, x + d)).collect();
            assert_eq!(numbers(&gpu, &x_there), sum);
            assert_close(&gpu, &numbers(&gpu, &out), &normed(&wide(&sum), &weight, 1e-5), "add, norm");

            let mut x_there = put(&gpu, &x);
            norm.then_add(&gpu, &mut x_there, &delta_there).unwrap();
            let delta = normed(&wide(&delta), &weight, 1e-5);
            let expected: Vec<f64> = wide(&x).iter().zip(&delta).map(|(x, d)| x + d).collect();
            assert_close(&gpu, &numbers(&gpu, &x_there), &expected, "norm, add");
        }
    }
}

#[test]
fn norms_a_part_of_a_row() {
    for gpu in gpus() {
        for (width, start, stride, rows) in [(32, 0, 128, 3), (4096, 4096, 12_288, 7), (1000, 24, 1025, 2)] {
            let (x, weight) = (random(&gpu, 1, rows * stride, 3.0), random(&gpu, 2, width, 1.0));
            let mut expected = wide(&x);
            for row in expected.chunks_mut(stride) {
                let part = &mut row[start..start + width];
                part.copy_from_slice(&normed(part, &weight, 1e-6));
            }
            let (mut there, weight) = (put(&gpu, &x), put(&gpu, &weight));
            let norm = Norm { weight: weight.as_view(), eps: 1e-6 };
            norm.part(&gpu, start, stride, &mut there).unwrap();
            assert_close(&gpu, &numbers(&gpu, &there), &expected, "part");
        }
    }
}

#[test]
fn norms_some_heads_of_a_row() {
    for gpu in gpus() {
        for (head_dim, start, heads, stride) in [(64, 0, 9, 1024), (128, 256, 8, 2048), (40, 8, 3, 136)] {
            let (rows, weight) = (5, random(&gpu, 2, head_dim, 2.0));
            let x = random(&gpu, 1, rows * stride, 1.0);
            let mut expected = wide(&x);
            for row in expected.chunks_mut(stride) {
                let heads = &mut row[start..start + heads * head_dim];
                heads.copy_from_slice(&normed(heads, &weight, 1e-6));
            }
            let weight_there = put(&gpu, &weight);
            let mut there = put(&gpu, &x);
            let norm = Norm { weight: weight_there.as_view(), eps: 1e-6 };
            norm.heads(&gpu, Heads { stride, start, heads }, &mut there).unwrap();
            assert_close(&gpu, &numbers(&gpu, &there), &expected, "heads");
        }
    }
}

#[test]
fn gates_are_those_of_the_formulas() {
    for gpu in gpus() {
        for (width, rows) in [(8, 1), (1536, 3), (14_336, 5), (2056, 9)] {
            let x = random(&gpu, 1, rows * 2 * width, 6.0);
            let x_there = put(&gpu, &x);
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let expected: Vec<f64> = wide(&x)
                    .chunks(2 * width)
                    .flat_map(|row| {
                        let (gates, ups) = row.split_at(width);
                        gates.iter().zip(ups).map(|(g, u)| activated(activation, *g) * u).collect::<Vec<_>>()
                    })
                    .collect();
                let mut out = poisoned(&gpu, rows * width);
                gate(&gpu, activation, width, &x_there, &mut out).unwrap();
                assert_close(&gpu, &numbers(&gpu, &out), &expected, "gate");
            }
        }
    }
}

pub fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}

#[test]
fn gathers_adds_and_caps_rows() {
    for gpu in gpus() {
        let (width, rows) = (1032, 9);
        let (x, bias) = (random(&gpu, 1, rows * width, 1.0), random(&gpu, 2, width, 1.0));
        let x_there = put(&gpu, &x);
        let which = [8, 0, 3, 3];
        let mut out = poisoned(&gpu, which.len() * width);
        rows::gather(&gpu, width, &x_there, &gpu.upload(&which).unwrap(), &mut out).unwrap();
        let expected: Vec<f32> =
            which.iter().flat_map(|&row| x[row as usize * width..][..width].iter().copied()).collect();
        assert_eq!(numbers(&gpu, &out), expected);

        let mut sum = put(&gpu, &x);
        rows::add_bias(&gpu, &put(&gpu, &bias), &mut sum).unwrap();
        let expected: Vec<f32> =
            x.iter().enumerate().map(|(i, x)| rounded(&gpu, x + bias[i % width])).collect();
        assert_eq!(numbers(&gpu, &sum), expected);

        let logits: Vec<f32> = (0..1001).map(|i| (i as f32 - 500.0) / 7.0).collect();
        let mut there = gpu.upload(&logits).unwrap();
        rows::softcap(&gpu, 30.0, &mut there).unwrap();
        let found: Vec<f64> = gpu.download(&there).unwrap().into_iter().map(f64::from).collect();
        let expected: Vec<f64> = logits.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
        assert_within(&found, &expected, 1e-5, "cap");
    }
}

/// The lowest id of the greatest logit.
fn likeliest(row: &[f32]) -> i32 {
    let mut best: Option<usize> = None;
    for (id, logit) in row.iter().enumerate() {
        if *logit > best.map_or(f32::NEG_INFINITY, |best| row[best]) {
            best = Some(id);
        }
    }
    best.map_or(-1, |best| best as i32)
}

#[test]
fn the_likeliest_token_is_the_lowest_of_the_greatest() {
    let gpu = gpu();
    for (vocab, rows) in [(1, 3), (7, 40), (128_256, 9), (49_153, 5)] {
        // Few values, so that many are equal.
        let mut rng = fastrand::Rng::with_seed(vocab as u64);
        let mut logits: Vec<f32> = (0..rows * vocab).map(|_| rng.i32(-50..50) as f32 / 8.0).collect();
        logits[0] = f32::NAN;
        logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        logits[2 * vocab..3 * vocab].fill(-0.0);
        logits[3 * vocab - 1] = 0.0;
        if rows > 4 {
            logits[3 * vocab..4 * vocab].fill(f32::NAN);
            logits[5 * vocab - 1] = f32::INFINITY;
        }
        let expected: Vec<i32> = logits.chunks(vocab).map(likeliest).collect();
        assert_eq!(sampled(&gpu, &logits, &vec![Draw::LIKELIEST; rows]), expected, "{vocab}");
    }
}

fn sampled(gpu: &Gpu, logits: &[f32], draws: &[Draw]) -> Vec<i32> {
    let words: Vec<i32> = draws.iter().flat_map(Draw::words).copied().collect();
    let mut tokens = gpu.upload(&vec![-7; draws.len()]).unwrap();
    sample(gpu, &gpu.upload(logits).unwrap(), &gpu.upload(&words).unwrap(), &mut tokens).unwrap();
    gpu.download(&tokens).unwrap()
}

#[test]
fn draws_are_those_of_the_reference() {
    let gpu = gpu();
    for (vocab, rows) in [(1, 3), (50, 400), (4099, 200), (49_152, 60)] {
        let mut random = fastrand::Rng::with_seed(vocab as u64);
        let mut logits: Vec<f32> =
            (0..rows * vocab).map(|_| (0..4).map(|_| 6.0 * random.f32() - 3.0).sum()).collect();
        // All the same, hardly any usable, and few values: many are equal.
        logits[..vocab].fill(1.5);
        logits[vocab..2 * vocab - 1].fill(f32::NAN);
        logits[2 * vocab..3 * vocab].iter_mut().for_each(|logit| *logit = logit.round());
        let mut draw = || Draw {
            temperature: [0.0, 0.1, 0.7, 1.0, 1.0, 3.0][random.usize(..6)],
            top_k: [0, 0, 1, 5, 40, 100_000][random.usize(..6)],
            top_p: [1.0, 1.0, 0.0, 0.5, 0.9, 0.99][random.usize(..6)],
            min_p: [0.0, 0.0, 0.05, 1.0][random.usize(..4)],
            share: random.u64(..),
            unused: 0,
        };
        let draws: Vec<Draw> = (0..rows).map(|_| draw()).collect();
        let found = sampled(&gpu, &logits, &draws);
        for ((row, draw), found) in logits.chunks(vocab).zip(&draws).zip(found) {
            let expected = reference::sample(row, draw).map_or(-1, |id| id as i32);
            assert_eq!(found, expected, "{draw:?} of {vocab}");
        }
    }
}

#[test]
fn made_up_weights_are_spread_evenly_and_the_same_again() {
    for gpu in gpus() {
        let fill = |seed, len| {
            let mut out = poisoned(&gpu, len);
            fill_uniform(&gpu, seed, 0.5, &mut out).unwrap();
            numbers(&gpu, &out)
        };
        let x = fill(3, 1_000_003);
        assert!(x.iter().all(|x| x.abs() <= 0.5));
        let mean = wide(&x).iter().sum::<f64>() / x.len() as f64;
        let square = wide(&x).iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 2e-3 && (square - 0.25 / 3.0).abs() < 1e-3, "{mean} {square}");
        assert_eq!(x[..1000], fill(3, 1000));
        assert_ne!(x[..1000], fill(4, 1000));
    }
}
