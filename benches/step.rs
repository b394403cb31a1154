//! The engine's step over the mock, which computes nothing: what is left is
//! the scheduler, the pool and the events.

use std::time::{Duration, Instant};

use baton_engine::{
    ChoiceSpec, Engine, EngineConfig, Goal, SequenceEvents, SequenceSpec, StartFrom, StepOutcome,
    backend::mock::{MockBackend, MockConfig},
};
use baton_protocol::{RequestId, Sampling, Stop};
use criterion::Criterion;

const SEQUENCES: u32 = 64;
const PAGE_TOKENS: u32 = 16;
const PROMPT_TOKENS: usize = 64;
const LONG_PROMPT_TOKENS: usize = 2048;
const ANSWER_TOKENS: u32 = 400;

/// A step in which 64 answers go on by a token each.
pub fn decode(criterion: &mut Criterion) {
    criterion.bench_function("step/decode_64", |bencher| {
        bencher.iter_custom(|steps| {
            let (mut engine, mut measured, mut left) = (engine(), Duration::ZERO, steps);
            while left > 0 {
                let answers: Vec<_> = (0..SEQUENCES).map(|at| submit(&engine, at, PROMPT_TOKENS)).collect();
                // Prompts are read in steps of their own.
                (0..16).for_each(|_| assert_eq!(engine.step().unwrap(), StepOutcome::Ran));
                let now = left.min(u64::from(ANSWER_TOKENS) - 40);
                let begun = Instant::now();
                (0..now).for_each(|_| assert_eq!(engine.step().unwrap(), StepOutcome::Ran));
                measured += begun.elapsed();
                left -= now;
                end(&mut engine, answers);
            }
            measured
        });
    });
}

/// A prompt of 2,048 tokens from its arrival to its end, in chunks.
pub fn prefill(criterion: &mut Criterion) {
    criterion.bench_function("step/prefill_2048", |bencher| {
        let (mut engine, mut seed) = (engine(), 0);
        bencher.iter(|| {
            seed += 1;
            let mut spec = spec(seed, LONG_PROMPT_TOKENS);
            spec.goal = Goal::Prefill { sample: vec![0] };
            let answer = engine.handle().submit(spec).unwrap();
            while engine.step().unwrap() == StepOutcome::Ran {}
            answer
        });
    });
}

fn engine() -> Engine {
    let backend = MockBackend::new(MockConfig::default(), PAGE_TOKENS);
    let mut config = EngineConfig::new(8192, 4096);
    config.scheduler.event_buffer = 1024;
    Engine::new(Box::new(backend), config).unwrap()
}

fn submit(engine: &Engine, seed: u32, tokens: usize) -> SequenceEvents {
    engine.handle().submit(spec(seed, tokens)).unwrap()
}

fn spec(seed: u32, tokens: usize) -> SequenceSpec {
    let prompt: Vec<u32> =
        (0..tokens as u32).map(|at| (seed.wrapping_mul(31) ^ at.wrapping_mul(7)) % 256).collect();
    SequenceSpec {
        request: RequestId(u128::from(seed)),
        tenant: String::new(),
        prompt_tokens: prompt.len(),
        tokens: prompt.into(),
        sampling: Sampling::default(),
        stop: Stop { max_tokens: ANSWER_TOKENS, min_tokens: 0, ignore_eos: true, token_ids: Vec::new() },
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        goal: Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] },
        start: StartFrom::Cold,
        deadline: None,
        itl: None,
    }
}

/// Whoever asked has gone.
fn end(engine: &mut Engine, answers: Vec<SequenceEvents>) {
    drop(answers);
    while engine.step().unwrap() == StepOutcome::Ran {}
}
