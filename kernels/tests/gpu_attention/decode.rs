//! One new token per sequence.

use baton_kernels::cuda::{
    Gpu, Graph,
    attention::{Decode, Inputs, Limits, Split},
};

use crate::fixture::{
    Fixture, SHAPES, Shape, gpus, in_both_forms, length, numbers, poisoned, put, random, some_of,
};

const FIXED: Split = Split::Every(256);

/// Query rows carry something after the heads, as rows of QKV do.
const MORE: usize = 64;

fn queries(gpu: &Gpu, fixture: &Fixture, seed: u64) -> Vec<f32> {
    random(gpu, seed, fixture.q_width() + MORE, 4.0)
}

/// The output rows for the whole batch, twice enqueued: what one run leaves behind must
/// suit the next.
fn decode(
    gpu: &Gpu,
    fixture: &Fixture,
    (q, kv_len): (&[f32], &[i32]),
    split: Split,
    (window, cap): (Option<usize>, Option<f32>),
) -> Vec<f32> {
    let limits = Limits { sequences: kv_len.len(), tokens: kv_len.iter().map(|len| *len as usize).sum() };
    let mut decode = Decode::new(gpu, fixture.shape.heads, fixture.pool_shape, split, limits).unwrap();
    let mut shares = decode.shares(gpu, window).unwrap();
    let (q, kv_len) = (put(gpu, q), gpu.upload(kv_len).unwrap());
    let mut out = poisoned(gpu, kv_len.len() * fixture.q_width());
    decode.plan(gpu, &kv_len, fixture.max_pages, &mut shares).unwrap();
    let pages = fixture.pages();
    for _ in 0..2 {
        let inputs = Inputs { q: &q, pages: &pages, kv_len: &kv_len, shares: &shares };
        decode.run(gpu, &fixture.attention(window, cap), &inputs, &mut out).unwrap();
    }
    numbers(gpu, &out)
}

/// Sequences of `lengths`.
fn scene(gpu: &Gpu, shape: Shape, lengths: &[usize]) -> Fixture {
    let sequences: Vec<_> = lengths.iter().enumerate().map(|(i, len)| (*len, i as u64)).collect();
    Fixture::new(gpu, shape, &sequences)
}

/// Checks all outputs of a [`scene`] of these lengths.
fn check(
    gpu: &Gpu,
    fixture: &Fixture,
    lengths: &[usize],
    split: Split,
    options: (Option<usize>, Option<f32>),
) {
    let q: Vec<f32> = (0..lengths.len() as u64).flat_map(|i| queries(gpu, fixture, 100 + i)).collect();
    let kv_len: Vec<i32> = lengths.iter().map(|len| *len as i32).collect();
    let out = decode(gpu, fixture, (&q, &kv_len), split, options);
    let rows = q.chunks(fixture.q_width() + MORE).zip(out.chunks(fixture.q_width()));
    for ((i, len), (q, out)) in lengths.iter().enumerate().zip(rows) {
        if *len == 0 {
            assert!(out.iter().all(|x| x.is_nan()), "a row without a sequence was written");
        } else {
            fixture.check(&fixture.attention(options.0, options.1), (i, len - 1), q, out);
        }
    }
}

#[test]
fn decode_is_right_for_a_few_sequences() {
    for gpu in gpus() {
        for shape in in_both_forms([SHAPES[0], SHAPES[1]]) {
            let lengths = [1, 65, 0, 200, 130];
            let fixture = scene(&gpu, shape, &lengths);
            for split in [Split::Even, Split::Every(64)] {
                check(&gpu, &fixture, &lengths, split, (None, None));
            }
        }
    }
}

#[test]
fn large_decode_is_right_at_every_edge() {
    for gpu in gpus() {
        let lengths = [1, 63, 0, 64, 65, 16, 127, 128, 129, 0, 0, 1000, 15, 17, 257, 48, 3000, 0].map(length);
        for shape in in_both_forms(SHAPES) {
            let fixture = scene(&gpu, shape, &lengths);
            for split in [Split::Even, FIXED, Split::Every(64)] {
                check(&gpu, &fixture, &lengths, split, (None, None));
            }
        }
    }
}

#[test]
fn large_decode_is_right_alone_and_in_crowds() {
    for gpu in gpus() {
        for shape in in_both_forms([SHAPES[0], SHAPES[1]]) {
            let crowd: Vec<usize> = (0..300).map(|i| i * 7919 % 200).collect();
            for lengths in [vec![1], vec![64], vec![length(1024)], vec![length(5000)], some_of(&crowd, 140)] {
                let fixture = scene(&gpu, shape, &lengths);
                for split in [Split::Even, FIXED] {
                    check(&gpu, &fixture, &lengths, split, (None, None));
                }
            }
        }
    }
}

#[test]
fn large_decode_sees_its_window_and_caps_scores() {
    for gpu in gpus() {
        let lengths = [1, 40, 64, 65, 100, 128, 129, 0, 1000, 2048, 333].map(length);
        for shape in in_both_forms(SHAPES) {
            let fixture = scene(&gpu, shape, &lengths);
            for window in some_of(&[100, 1, 64, 512], 1) {
                for split in [Split::Even, FIXED] {
                    check(&gpu, &fixture, &lengths, split, (Some(window), None));
                }
            }
            check(&gpu, &fixture, &lengths, Split::Even, (None, Some(2.0)));
            check(&gpu, &fixture, &lengths, FIXED, (Some(70), Some(2.0)));
        }
    }
}

#[test]
fn large_fixed_splits_give_the_same_bits_alone_and_batched() {
    for gpu in gpus() {
        for shape in in_both_forms([SHAPES[0], SHAPES[1], SHAPES[6]]) {
            let sequences: Vec<_> = (0..40).map(|i| (length(1 + i * 5471 % 1500), i as u64)).collect();
            let sequences = some_of(&sequences, 6);
            let fixture = Fixture::new(&gpu, shape, &sequences);
            let q: Vec<_> = (0..sequences.len() as u64).map(|i| queries(&gpu, &fixture, 100 + i)).collect();
            let kv_len: Vec<i32> = sequences.iter().map(|(len, _)| *len as i32).collect();
            let together = decode(&gpu, &fixture, (&q.concat(), &kv_len), FIXED, (None, None));
            for (i, sequence) in sequences.iter().enumerate() {
                let alone = Fixture::new(&gpu, shape, &[*sequence]);
                let alone = decode(&gpu, &alone, (&q[i], &kv_len[i..=i]), FIXED, (None, None));
                let batched = &together[i * fixture.q_width()..(i + 1) * fixture.q_width()];
                assert_eq!(alone, batched, "{shape:?} {sequence:?}");
            }
        }
    }
}

#[test]
fn one_graph_serves_any_lengths() {
    for gpu in gpus() {
        let shape = SHAPES[0];
        let sequences: Vec<_> = (0..8).map(|i| (2000, i)).collect();
        let fixture = Fixture::new(&gpu, shape, &sequences);
        let limits = Limits { sequences: 8, tokens: 0 };
        let mut decode = Decode::new(&gpu, shape.heads, fixture.pool_shape, Split::Even, limits).unwrap();
        let mut shares = decode.shares(&gpu, None).unwrap();
        let host_q = random(&gpu, 77, 8 * fixture.q_width(), 4.0);
        let (q, mut kv_len) = (put(&gpu, &host_q), gpu.upload(&[1; 8]).unwrap());
        let mut out = poisoned(&gpu, 8 * fixture.q_width());
        let (pages, attention) = (fixture.pages(), fixture.attention(None, None));
        let mut step = |gpu: &Gpu, out: &mut _| {
            decode.plan(gpu, &kv_len, fixture.max_pages, &mut shares)?;
            for _ in 0..3 {
                decode.run(
                    gpu,
                    &attention,
                    &Inputs { q: &q, pages: &pages, kv_len: &kv_len, shares: &shares },
                    out,
                )?;
            }
            Ok(())
        };
        step(&gpu, &mut out).unwrap();
        gpu.synchronize().unwrap();
        let graph = Graph::record(&gpu, |gpu| step(gpu, &mut out)).unwrap();
        for round in 0..6 {
            let lengths: Vec<i32> = (0..8).map(|i| (i * 997 + round * 313) % 2000).collect();
            gpu.stream().memcpy_htod(&lengths, &mut kv_len).unwrap();
            graph.replay().unwrap();
            let out = numbers(&gpu, &out);
            for (i, len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
                let row = i * fixture.q_width()..(i + 1) * fixture.q_width();
                fixture.check(&attention, (i, *len as usize - 1), &host_q[row.clone()], &out[row]);
            }
        }
    }
}
