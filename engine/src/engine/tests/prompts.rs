//! What is told of the tokens of prompts.

use baton_protocol::{Pooling, PromptLogprobs, PromptToken};

use super::{
    backends::Spoiled,
    fixture::{Answer, Fixture, PAGE, choices, generate, mock, prompt, text},
    *,
};
use crate::{Goal, SequenceSpec, SubmitError};

fn telling(mut spec: SequenceSpec, from: u32, top: u32) -> SequenceSpec {
    spec.prompt_logprobs = Some(PromptLogprobs { from, top });
    spec
}

fn expected(spec: &SequenceSpec, from: u32, top: u32) -> Vec<PromptToken> {
    mock::expected_prompt(&spec.tokens[..spec.prompt_tokens], from as usize, top)
}

fn assert_told(answer: &Answer, spec: &SequenceSpec, (from, top): (u32, u32)) {
    assert_eq!((answer.prompt_from, &answer.prompt), (from, &expected(spec, from, top)));
    assert_eq!(answer.tokens[&0], text(spec, 0, 5), "the answer is what it is without");
}

#[test]
fn a_prompt_is_told_of_chunk_by_chunk_from_any_token_on() {
    for batch_tokens in [4, 8, 64] {
        for from in [1, 2, 7, 8, 9, 21] {
            let mut fixture = Fixture::with(32, |config| config.scheduler.max_batch_tokens = batch_tokens);
            let spec = generate(&prompt(3, 22), 3, 5);
            let answer = fixture.answer(telling(spec.clone(), from, 3));
            assert_told(&answer, &spec, (from, 3));
            fixture.assert_idle();
        }
    }
}

#[test]
fn what_is_cached_is_computed_again_as_far_as_it_is_told_of() {
    let mut fixture = Fixture::new(32);
    let spec = generate(&prompt(3, 22), 3, 5);
    fixture.answer(spec.clone());
    for (from, cached) in [(1, 0), (4, 0), (5, 4), (9, 8), (21, 20), (22, 20)] {
        let answer = fixture.answer(telling(spec.clone(), from, 1));
        assert_eq!(answer.cached_tokens, cached / PAGE * PAGE, "from {from}");
        if from < 22 {
            assert_told(&answer, &spec, (from, 1));
        } else {
            assert_eq!(answer.prompt, [], "nothing is behind the last token");
        }
    }
}

#[test]
fn others_in_the_step_change_nothing_and_choices_share_what_is_told() {
    let mut fixture = Fixture::with(64, |config| config.scheduler.max_batch_tokens = 12);
    let mut several = generate(&prompt(5, 17), 5, 5);
    several.goal = Goal::Generate { choices: choices(&[&[], &[]]) };
    let specs = [generate(&prompt(3, 22), 3, 5), generate(&prompt(4, 30), 4, 5), several];
    let asked = vec![telling(specs[0].clone(), 1, 2), specs[1].clone(), telling(specs[2].clone(), 3, 0)];
    let answers = fixture.answers(asked);
    assert_told(&answers[0], &specs[0], (1, 2));
    assert_eq!((&answers[1].prompt[..], &answers[1].tokens[&0]), (&[][..], &text(&specs[1], 0, 5)));
    assert_told(&answers[2], &specs[2], (3, 0));
    assert_eq!(answers[2].tokens[&1], text(&specs[2], 1, 5));
}

/// Two prompts in one step, of which a backend tells in the other order.
#[test]
fn whose_rows_were_read_does_not_depend_on_their_order() {
    let turned = Spoiled::new(|_, logits| {
        let mut logits = logits?;
        logits.read.reverse();
        Ok(logits)
    });
    let mut fixture = Fixture::over(turned, 64, |_| {});
    let specs = [generate(&prompt(3, 12), 3, 5), generate(&prompt(5, 17), 5, 5)];
    let answers = fixture.answers(specs.iter().map(|spec| telling(spec.clone(), 1, 2)).collect());
    for (answer, spec) in answers.iter().zip(&specs) {
        assert_told(answer, spec, (1, 2));
    }
}

#[test]
fn rows_that_were_not_read_fail_their_request_alone() {
    let forgetful = Spoiled::new(|_, logits| {
        let mut logits = logits?;
        logits.read.retain(|(index, _)| *index == 0);
        Ok(logits)
    });
    let mut fixture = Fixture::over(forgetful, 64, |_| {});
    let specs = [generate(&prompt(3, 12), 3, 5), generate(&prompt(5, 17), 5, 5)];
    let asked = vec![telling(specs[0].clone(), 1, 2), telling(specs[1].clone(), 1, 2)];
    let answers = fixture.answers(asked);
    assert_told(&answers[0], &specs[0], (1, 2));
    assert_eq!(answers[1].failed.as_ref().unwrap().code, ErrorCode::Internal);
    assert!(answers[1].prompt.is_empty() && answers[1].tokens.is_empty());
    fixture.assert_idle();
}

#[test]
fn a_prompt_is_told_of_once_though_it_is_preempted() {
    // Room for one answer at its longest, so that the younger one is preempted meanwhile.
    let mut fixture = Fixture::with(12, |config| config.scheduler.max_batch_tokens = 8);
    let specs = [generate(&prompt(3, 16), 3, 24), generate(&prompt(4, 16), 4, 24)];
    let answers = fixture.answers(specs.iter().map(|spec| telling(spec.clone(), 1, 1)).collect());
    assert!(fixture.handle.metrics().preemptions.get() > 0, "nobody was preempted");
    for (answer, spec) in answers.iter().zip(&specs) {
        assert_eq!(answer.prompt, expected(spec, 1, 1));
        assert_eq!(answer.tokens[&0], text(spec, 0, 24));
    }
}

#[test]
fn a_resumed_answer_is_told_the_rest() {
    let mut fixture = Fixture::new(32);
    let spec = generate(&prompt(3, 22), 3, 5);
    let known = text(&spec, 0, 2);
    let mut resumed = telling(spec.clone(), 13, 2);
    resumed.tokens = [&spec.tokens[..], &known].concat().into();
    let answer = fixture.answer(resumed);
    assert_eq!((answer.prompt_from, answer.prompt), (13, expected(&spec, 13, 2)));
    assert_eq!((answer.first[&0], &answer.tokens[&0]), (2, &text(&spec, 0, 5)[2..].to_vec()));
}

#[test]
fn running_ahead_waits_while_a_prompt_is_read() {
    let config = mock::MockConfig { runs_ahead: true, ..mock::MockConfig::default() };
    let mut fixture = Fixture::over(mock(config), 64, |config| config.scheduler.max_batch_tokens = 8);
    let specs = [generate(&prompt(3, 6), 3, 30), generate(&prompt(4, 40), 4, 5)];
    let answers = fixture.answers(vec![specs[0].clone(), telling(specs[1].clone(), 9, 1)]);
    assert_eq!(answers[0].tokens[&0], text(&specs[0], 0, 30));
    assert_told(&answers[1], &specs[1], (9, 1));
}

#[test]
fn only_who_computes_a_prompt_and_answers_can_tell_of_it() {
    let fixture = Fixture::new(32);
    let spec = telling(generate(&prompt(3, 8), 3, 5), 1, 0);
    let goal = Goal::Prefill { sample: vec![0] };
    let refused = [SequenceSpec { goal, ..spec.clone() }, telling(spec, 0, 0)];
    for spec in refused {
        assert!(matches!(fixture.handle.submit(spec), Err(SubmitError::Invalid(_))));
    }
}

fn embedding(seed: u64, tokens: usize, pooling: Pooling) -> SequenceSpec {
    SequenceSpec { goal: Goal::Embed { pooling }, ..generate(&prompt(seed, tokens), seed, 1) }
}

/// However a prompt is cut, cached or preempted, whoever else is there.
#[test]
fn a_prompt_becomes_a_vector() {
    for (batch_tokens, pooling) in
        [4, 8, 64].into_iter().flat_map(|tokens| [(tokens, Pooling::Mean), (tokens, Pooling::Last)])
    {
        let mut fixture = Fixture::with(32, |config| config.scheduler.max_batch_tokens = batch_tokens);
        for tokens in [1, 3, 4, 22, 22, 23] {
            let specs = vec![embedding(3, tokens, pooling), generate(&prompt(4, 9), 4, 5)];
            let answers = fixture.answers(specs.clone());
            let expected = mock::expected_embedding(&specs[0].tokens, pooling);
            let found = answers[0].embedding.as_ref().unwrap();
            assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
            assert!(answers[0].tokens.is_empty() && answers[0].finished.is_empty());
            assert_eq!(answers[1].tokens[&0], text(&specs[1], 0, 5));
            let cached = if pooling == Pooling::Mean { 0 } else { answers[0].cached_tokens };
            assert_eq!(answers[0].cached_tokens, cached);
        }
        fixture.assert_idle();
    }
}

#[test]
fn a_prompt_as_long_as_the_context_becomes_a_vector_too() {
    let mut fixture = Fixture::with(8, |config| config.context_tokens = 30);
    let answer = fixture.answer(embedding(3, 30, Pooling::Mean));
    assert!(answer.embedding.is_some() && answer.failed.is_none());
}

#[test]
fn running_ahead_waits_for_a_vectors_rows() {
    let config = mock::MockConfig { runs_ahead: true, ..mock::MockConfig::default() };
    let mut fixture = Fixture::over(mock(config), 64, |config| config.scheduler.max_batch_tokens = 8);
    for pooling in [Pooling::Mean, Pooling::Last] {
        let specs = vec![generate(&prompt(3, 6), 3, 30), embedding(5, 40, pooling)];
        let answers = fixture.answers(specs.clone());
        assert_eq!(answers[0].tokens[&0], text(&specs[0], 0, 30));
        assert!(answers[1].embedding.is_some());
    }
}
