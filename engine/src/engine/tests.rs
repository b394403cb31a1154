//! The engine on the mock backend, without its thread.

mod ahead;
mod backends;
mod faults;
mod fixture;
mod grammars;
mod handoff;
mod prompts;
mod sharing;
mod worker;

use baton_protocol::{FinishReason, Sampling};
use fixture::{Fixture, generate, prompt, text};

use super::*;
use crate::backend::mock;

/// Only what needs logits asks the device for them; the tokens are the same.
#[test]
fn plain_greedy_answers_need_no_logits() {
    let backend = || Box::new(backends::Likeliest(fixture::mock(mock::MockConfig::default())));
    let mut greedy = generate(&prompt(3, 9), 3, 8);
    greedy.sampling.temperature = 0.0;
    let answer = Fixture::over(backend(), 32, |_| {}).answer(greedy.clone());
    assert_eq!(answer.tokens[&0], text(&greedy, 0, 8));
    let shaping: [fn(&mut crate::SequenceSpec); 5] = [
        |spec| spec.sampling.repetition_penalty = 1.5,
        |spec| spec.sampling.presence_penalty = 0.9,
        |spec| spec.sampling.frequency_penalty = 0.9,
        |spec| spec.sampling.logit_bias.push(baton_protocol::LogitBias { token: 40, bias: 30.5 }),
        |spec| (spec.stop.min_tokens, spec.stop.token_ids) = (3, vec![text(spec, 0, 1)[0]]),
    ];
    for shape in shaping {
        let mut spec = greedy.clone();
        shape(&mut spec);
        let answer = Fixture::over(backend(), 32, |_| {}).answer(spec.clone());
        if spec.stop.min_tokens == 0 {
            assert_eq!(answer.tokens[&0], text(&spec, 0, 8));
        } else {
            assert!(answer.tokens[&0].len() >= 3 && answer.tokens[&0][0] != spec.stop.token_ids[0]);
        }
    }
    let changes: [fn(&mut crate::SequenceSpec); 2] =
        [|spec| spec.sampling.temperature = 0.5, |spec| spec.logprobs = true];
    for change in changes {
        let mut spec = greedy.clone();
        change(&mut spec);
        let mut fixture = Fixture::over(backend(), 32, |_| {});
        let events = fixture.handle.submit(spec).unwrap();
        let stepped = fixture.engine.step();
        assert!(matches!(stepped, Err(EngineError::Backend(_))), "{stepped:?}");
        drop(events);
    }
}

#[test]
fn answers_are_those_of_the_mock_alone_and_batched() {
    let mut fixture = Fixture::new(64);
    let specs: Vec<_> = (0..6).map(|seed| generate(&prompt(seed, 5 + 7 * seed as usize), seed, 12)).collect();
    for spec in &specs {
        let alone = fixture.answer(spec.clone());
        assert_eq!(alone.tokens[&0], text(spec, 0, 12));
    }
    fixture.engine.pool.flush_cache();
    let together = fixture.answers(specs.clone());
    for (spec, answer) in specs.iter().zip(together) {
        assert_eq!(answer.tokens[&0], text(spec, 0, 12));
        assert_eq!(answer.finished[&0], FinishReason::Length);
    }
    fixture.assert_idle();
}

#[test]
fn chunk_sizes_change_nothing() {
    for max_batch_tokens in [1, 5, 16, 100] {
        let mut fixture = Fixture::with(64, |config| config.scheduler.max_batch_tokens = max_batch_tokens);
        let specs: Vec<_> = (0..3).map(|seed| generate(&prompt(seed, 37), seed, 6)).collect();
        for (spec, answer) in specs.iter().zip(fixture.answers(specs.clone())) {
            assert_eq!(answer.tokens[&0], text(spec, 0, 6));
        }
    }
}

#[test]
fn a_cached_prefix_is_used_and_changes_nothing() {
    let mut fixture = Fixture::new(64);
    let spec = generate(&prompt(1, 33), 1, 5);
    assert_eq!(fixture.answer(spec.clone()).cached_tokens, 0);
    let again = fixture.answer(spec.clone());
    assert_eq!((again.cached_tokens, &again.tokens[&0]), (32, &text(&spec, 0, 5)));
    // A whole number of pages: the last token is computed again all the same.
    let whole = generate(&spec.tokens[..32], 1, 5);
    let answer = fixture.answer(whole.clone());
    assert_eq!((answer.cached_tokens, &answer.tokens[&0]), (28, &text(&whole, 0, 5)));
    let mut other = spec.clone();
    other.tenant = "other".to_owned();
    assert_eq!(fixture.answer(other).cached_tokens, 0);
    let metrics = &fixture.engine.shared.metrics;
    assert_eq!(
        (metrics.prefix_cache_queries.get(), metrics.prefix_cache_hits.get()),
        (32 + 32 + 28 + 32, 60)
    );
}

#[test]
fn a_finished_answer_is_cached_for_the_next_turn() {
    let mut fixture = Fixture::new(64);
    let spec = generate(&prompt(1, 10), 1, 10);
    let answer = fixture.answer(spec.clone());
    let turn = [&spec.tokens, answer.tokens[&0].as_slice(), &[40, 41]].concat();
    // All but the last token of the answer were computed: 19 tokens, four full pages.
    assert_eq!(fixture.answer(generate(&turn, 2, 3)).cached_tokens, 16);
}

#[test]
fn preempted_sequences_give_the_same_answers() {
    let mut fixture = Fixture::new(12);
    let specs: Vec<_> = (0..6).map(|seed| generate(&prompt(seed, 6), seed, 22)).collect();
    for (spec, answer) in specs.iter().zip(fixture.answers(specs.clone())) {
        assert_eq!(answer.tokens[&0], text(spec, 0, 22));
    }
    assert!(fixture.engine.shared.metrics.preemptions.get() > 0);
    fixture.assert_idle();
}

#[test]
fn answers_end_at_stop_tokens_and_limits() {
    let mut fixture = Fixture::new(8);
    let mut spec = generate(&prompt(1, 6), 1, 10);
    let full = text(&spec, 0, 10);
    let stop_at = (1..10).find(|at| !full[..*at].contains(&full[*at])).unwrap();
    spec.stop.token_ids = vec![full[stop_at]];
    let answer = fixture.answer(spec.clone());
    assert_eq!((&answer.tokens[&0][..], answer.finished[&0]), (&full[..stop_at], FinishReason::Stop));
    spec.stop.min_tokens = 10;
    let answer = fixture.answer(spec);
    assert_eq!((answer.tokens[&0].len(), answer.finished[&0]), (10, FinishReason::Length));
    assert!(!answer.tokens[&0].contains(&full[stop_at]));
    // The context ends with the pool: 8 pages of 4 tokens.
    let answer = fixture.answer(generate(&prompt(2, 30), 2, 10));
    assert_eq!((answer.tokens[&0].len(), answer.finished[&0]), (2, FinishReason::Length));
    assert!(matches!(
        fixture.handle.submit(generate(&prompt(2, 33), 2, 10)),
        Err(crate::SubmitError::Invalid(_))
    ));
}

#[test]
fn the_models_end_token_ends_an_answer_unless_ignored() {
    let mock = mock::MockConfig { eos_probability: 1.0, ..Default::default() };
    let mut fixture =
        Fixture::over(fixture::mock(mock), 16, |config| config.eos_tokens = vec![mock::EOS_TOKEN]);
    let mut spec = generate(&prompt(1, 6), 1, 4);
    spec.stop.ignore_eos = false;
    let answer = fixture.answer(spec.clone());
    assert_eq!((answer.tokens.get(&0), answer.finished[&0]), (None, FinishReason::Stop));
    spec.stop.min_tokens = 2;
    let answer = fixture.answer(spec.clone());
    assert_eq!((answer.tokens[&0].len(), answer.finished[&0]), (2, FinishReason::Stop));
    spec.stop = baton_protocol::Stop { ignore_eos: true, min_tokens: 0, ..spec.stop };
    let answer = fixture.answer(spec);
    assert_eq!(
        (&answer.tokens[&0][..], answer.finished[&0]),
        (&[mock::EOS_TOKEN; 4][..], FinishReason::Length)
    );
}

#[test]
fn log_probabilities_come_on_request() {
    let mut fixture = Fixture::new(16);
    let mut spec = generate(&prompt(1, 6), 1, 3);
    spec.logprobs = true;
    spec.top_logprobs = 2;
    let mut events = fixture.handle.submit(spec).unwrap();
    fixture.run();
    let mut tokens = 0;
    while let Ok(event) = events.try_recv() {
        if let SequenceEvent::Token(token) = event {
            tokens += 1;
            assert!(token.logprob.unwrap() < 0.0 && token.top.len() == 2);
            assert!(
                token.top[0].logprob >= token.top[1].logprob
                    && token.top[0].logprob >= token.logprob.unwrap()
            );
        }
    }
    assert_eq!(tokens, 3);
}

#[test]
fn greedy_answers_are_the_mocks_too() {
    let mut fixture = Fixture::new(16);
    let mut spec = generate(&prompt(1, 6), 1, 8);
    spec.sampling = Sampling { presence_penalty: 0.4, ..Sampling::greedy() };
    assert_eq!(fixture.answer(spec.clone()).tokens[&0], text(&spec, 0, 8));
}

#[test]
fn layer_groups_cover_the_layers() {
    for (layers, groups) in [(30, 4), (4, 4), (5, 3), (7, 1)] {
        let ranges: Vec<_> =
            (0..layers).filter_map(|layer| group_ending_with(layer, layers, groups)).collect();
        assert_eq!(ranges.len() as u32, groups);
        assert!(ranges.iter().flat_map(Clone::clone).eq(0..layers), "{ranges:?}");
    }
}
