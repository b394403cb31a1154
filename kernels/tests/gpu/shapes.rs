//! Logits changed before a draw.

use std::collections::BTreeMap;

use baton_kernels::{
    Shape,
    cuda::{
        embed::Tokens,
        shape::{Shapes, shape},
    },
    reference,
    shape::{List, mask_words},
};

use crate::gpu;

/// What one sequence is asked for, and what it has said.
struct Sequence {
    shape: Shape,
    biases: Vec<(u32, f32)>,
    seen: BTreeMap<u32, u32>,
    mask: Option<Vec<u32>>,
}

impl Sequence {
    fn new(random: &mut fastrand::Rng, slot: i32, vocab: usize) -> Self {
        let mut pairs = |most: usize| -> BTreeMap<u32, u32> {
            (0..random.usize(..most)).map(|_| (random.u32(..vocab as u32), random.u32(..4))).collect()
        };
        let (biases, seen) = (pairs(40), pairs(3000));
        let biases = biases.into_iter().map(|(token, bias)| (token, bias as f32 * 3.3 - 5.0)).collect();
        let is_masked = random.bool();
        let shape = Shape {
            repetition: [1.0, 1.1, 0.7][random.usize(..3)],
            presence: [0.0, 0.3, -0.4][random.usize(..3)],
            frequency: [0.0, 0.17, -1.9][random.usize(..3)],
            slot: if random.u8(..5) == 0 { -1 } else { slot },
            masked: i32::from(is_masked),
            ..Shape::NONE
        };
        let mask = is_masked.then(|| (0..mask_words(vocab)).map(|_| random.u32(..)).collect());
        Self { shape, biases, seen, mask }
    }

    fn words(&self, capacity: usize) -> Vec<i32> {
        let seen: Vec<_> = self.seen.iter().map(|(token, times)| (*token, *times)).collect();
        let mut words = List { biases: &self.biases, seen: &seen }.words();
        words.resize(2 * capacity, -77);
        words
    }

    fn expected(&self, logits: &mut [f32]) {
        let seen: Vec<_> = self.seen.iter().map(|(token, times)| (*token, *times)).collect();
        let list = List { biases: &self.biases, seen: &seen };
        let list = if self.shape.slot < 0 { List::default() } else { list };
        reference::shape(logits, &self.shape, list, self.mask.as_deref());
    }
}

fn logits(random: &mut fastrand::Rng, len: usize) -> Vec<f32> {
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
    let one = |random: &mut fastrand::Rng| match random.usize(..100) {
        place @ 0..5 => special[place],
        _ => 20.0 * random.f32() - 10.0,
    };
    (0..len).map(|_| one(random)).collect()
}

/// Lists are loaded once; then each step's newest token joins, known to the host or to the
/// card alone, said already or not.
#[test]
fn rows_are_shaped_as_the_reference_and_lists_go_on() {
    let gpu = gpu();
    for (vocab, rows) in [(50, 7), (4099, 12), (128_256, 5)] {
        let mut random = fastrand::Rng::with_seed(vocab as u64);
        let capacity = 4100;
        // Rows stand in another order than slots.
        let mut sequences: Vec<Sequence> =
            (0..rows).map(|row| Sequence::new(&mut random, (rows - 1 - row) as i32, vocab)).collect();
        let lists: Vec<i32> = sequences.iter().rev().flat_map(|one| one.words(capacity)).collect();
        let mut lists = gpu.upload(&lists).unwrap();
        let no_mask = vec![0; mask_words(vocab)];
        let masks = sequences.iter().flat_map(|one| one.mask.as_ref().unwrap_or(&no_mask));
        let masks = gpu.upload(&masks.map(|word| *word as i32).collect::<Vec<_>>()).unwrap();
        for step in 0..6 {
            let drawn: Vec<i32> = (0..rows).map(|_| random.i32(0..vocab as i32)).collect();
            let tokens: Vec<i32> =
                (0..rows).map(|_| random.i32(-(rows as i32)..vocab.min(9) as i32)).collect();
            for (row, one) in sequences.iter_mut().enumerate().filter(|_| step > 0) {
                let token = if tokens[row] < 0 { drawn[(-1 - tokens[row]) as usize] } else { tokens[row] };
                (one.shape.newest, one.shape.times) = (row as i32, i32::from(step > 1));
                *one.seen.entry(token as u32).or_default() += one.shape.times as u32;
            }
            let before = logits(&mut random, rows * vocab);
            let mut expected = before.clone();
            expected.chunks_mut(vocab).zip(&sequences).for_each(|(row, one)| one.expected(row));
            let words: Vec<i32> = sequences.iter().flat_map(|one| one.shape.words()).copied().collect();
            let (words, tokens, drawn) =
                (gpu.upload(&words).unwrap(), gpu.upload(&tokens).unwrap(), gpu.upload(&drawn).unwrap());
            let tokens = Tokens { rows: tokens.as_view(), drawn: Some(drawn.as_view()) };
            let shapes = Shapes { words: words.as_view(), masks: masks.as_view(), tokens: &tokens, capacity };
            let mut found = gpu.upload(&before).unwrap();
            shape(&gpu, &shapes, &mut lists, &mut found).unwrap();
            let found = gpu.download(&found).unwrap();
            for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                let (row, id) = (id / vocab, id % vocab);
                assert!(is_same, "step {step} of {vocab}, row {row}, token {id}: {found} {expected}");
            }
        }
    }
}
