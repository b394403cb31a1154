//! What is done for every step, prompt, frame, draw and token, by criterion.
//!
//! `cargo bench --bench hot_paths` prints times; `just bench-compare` holds
//! them to `benches/baseline.json`, as multiples of the yardstick of their own
//! run. `cargo test` does each once.
//!
//! - `step`: plan, forward without a model, sample, commit
//! - `prefix`: the coordinator's index of who holds which pages
//! - `frame`: headers of KV frames
//! - `sampling`: a token out of a model's logits
//! - `stream`: an answer as server-sent events, through the API's routes

#![allow(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]
#![allow(missing_docs, reason = "criterion's macros write functions without")]

mod frame;
mod prefix;
mod sampling;
mod step;
mod stream;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

/// Of what no change here makes faster or slower: a chain of dependent
/// multiplications, which tells how fast the machine is just now.
fn yardstick(criterion: &mut Criterion) {
    let chain =
        |from: u64| (0..10_000).fold(from, |x, _| x.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(17));
    criterion.bench_function("yardstick", |bencher| bencher.iter(|| chain(black_box(1))));
}

criterion_group!(
    hot_paths,
    yardstick,
    step::decode,
    step::prefill,
    prefix::hash,
    prefix::look_up,
    prefix::apply,
    frame::header,
    sampling::greedy,
    sampling::filtered,
    sampling::penalised,
    stream::answer
);
criterion_main!(hot_paths);
