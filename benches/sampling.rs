//! A token out of the logits of a vocabulary of 49,152, SmolLM2's.

use std::hint::black_box;

use baton_engine::sampler::{Draw, draw};
use baton_protocol::Sampling;
use criterion::Criterion;

const VOCAB_TOKENS: usize = 49_152;
const PROMPT_TOKENS: usize = 512;

/// The likeliest.
pub fn greedy(criterion: &mut Criterion) {
    run(criterion, "greedy", &Sampling { temperature: 0.0, ..Sampling::default() });
}

/// Of the likeliest forty, or of nine tenths.
pub fn filtered(criterion: &mut Criterion) {
    let sampling = Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, ..Sampling::default() };
    run(criterion, "filtered", &sampling);
}

/// With penalties for what has been said.
pub fn penalised(criterion: &mut Criterion) {
    let (temperature, repetition_penalty, frequency_penalty) = (0.8, 1.1, 0.2);
    let sampling = Sampling { temperature, repetition_penalty, frequency_penalty, ..Sampling::default() };
    run(criterion, "penalised", &sampling);
}

fn run(criterion: &mut Criterion, name: &str, sampling: &Sampling) {
    let mut random = fastrand::Rng::with_seed(2026);
    let logits: Vec<f32> = (0..VOCAB_TOKENS).map(|_| random.f32().powi(8) * 20.0).collect();
    let tokens: Vec<u32> = (0..2 * PROMPT_TOKENS).map(|_| random.u32(..VOCAB_TOKENS as u32)).collect();
    let how = Draw { sampling, choice: 0, tokens: &tokens, prompt_tokens: PROMPT_TOKENS, mask: None };
    criterion.bench_function(&format!("sampling/{name}"), |bencher| {
        bencher.iter(|| draw(black_box(&logits), black_box(&how)).unwrap());
    });
}
