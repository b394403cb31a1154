//! Several choices over the same pages; resume; readers that stop or fall behind.

use baton_protocol::FinishReason;

use super::fixture::{Answer, Fixture, choices, generate, prompt, text};
use crate::{Goal, SequenceSpec, StepOutcome};

fn with_choices(mut spec: SequenceSpec, known: &[&[u32]]) -> SequenceSpec {
    spec.goal = Goal::Generate { choices: choices(known) };
    spec
}

#[test]
fn choices_share_the_prompt_and_part() {
    for tokens in [1, 6, 8, 9] {
        let mut fixture = Fixture::new(32);
        let spec = with_choices(generate(&prompt(3, tokens), 3, 10), &[&[], &[], &[]]);
        let answer = fixture.answer(spec.clone());
        for choice in 0..3 {
            assert_eq!(
                answer.tokens[&choice],
                text(&spec, choice, 10),
                "prompt of {tokens}, choice {choice}"
            );
        }
        assert_ne!(answer.tokens[&0], answer.tokens[&1]);
        fixture.assert_idle();
    }
}

#[test]
fn choices_that_do_not_fit_together_take_turns() {
    let mut fixture = Fixture::new(7);
    let spec = with_choices(generate(&prompt(3, 6), 3, 20), &[&[], &[], &[]]);
    let answer = fixture.answer(spec.clone());
    for choice in 0..3 {
        assert_eq!(answer.tokens[&choice], text(&spec, choice, 20));
    }
    assert!(fixture.engine.shared.metrics.preemptions.get() > 0);
    fixture.assert_idle();
}

#[test]
fn a_resumed_answer_is_the_uninterrupted_one() {
    let base = generate(&prompt(5, 9), 5, 14);
    let whole = [text(&base, 0, 14), text(&base, 1, 14)];
    for (a, b) in [(0, 0), (1, 1), (5, 0), (0, 7), (9, 13), (14, 3)] {
        let mut fixture = Fixture::new(32);
        let answer = fixture.answer(with_choices(base.clone(), &[&whole[0][..a], &whole[1][..b]]));
        for (choice, known) in [(0, a), (1, b)] {
            let rest = answer.tokens.get(&choice).cloned().unwrap_or_default();
            assert_eq!(rest, whole[choice as usize][known..], "{known} tokens known");
            assert_eq!(answer.finished[&choice], FinishReason::Length);
            assert!(rest.is_empty() || answer.first[&choice] as usize == known);
        }
    }
}

#[test]
fn what_choices_have_in_common_may_be_part_of_the_tokens() {
    let mut spec = generate(&prompt(5, 9), 5, 14);
    spec.sampling.frequency_penalty = 0.7;
    let whole = text(&spec, 0, 14);
    spec.tokens = [&spec.tokens, &whole[..4]].concat().into();
    let answer = Fixture::new(32).answer(with_choices(spec, &[&whole[4..6]]));
    assert_eq!((&answer.tokens[&0][..], answer.first[&0]), (&whole[6..], 6));
}

#[test]
fn a_stopped_choice_ends_and_others_go_on() {
    let mut fixture = Fixture::new(32);
    let spec = with_choices(generate(&prompt(3, 6), 3, 10), &[&[], &[]]);
    let mut events = fixture.handle.submit(spec.clone()).unwrap();
    for _ in 0..3 {
        fixture.engine.step().unwrap();
    }
    events.stop_choice(0);
    fixture.run();
    let mut answer = Answer::default();
    answer.read(&mut events);
    assert_eq!(answer.tokens[&0], text(&spec, 0, 3));
    assert_eq!(answer.tokens[&1], text(&spec, 1, 10));
    assert!(!answer.finished.contains_key(&0));
    fixture.assert_idle();
}

#[test]
fn a_slow_reader_pauses_and_stalls_nobody() {
    let mut fixture = Fixture::with(32, |config| config.scheduler.event_buffer = 0);
    let (slow, quick) = (generate(&prompt(1, 6), 1, 12), generate(&prompt(2, 6), 2, 12));
    let mut unread = fixture.handle.submit(slow.clone()).unwrap();
    let mut read = fixture.handle.submit(quick.clone()).unwrap();
    let mut answer = Answer::default();
    while answer.finished.is_empty() {
        assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran);
        answer.read(&mut read);
    }
    assert_eq!(answer.tokens[&0], text(&quick, 0, 12));
    assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Stalled);
    let mut late = Answer::default();
    while late.finished.is_empty() {
        late.read(&mut unread);
        fixture.engine.step().unwrap();
    }
    assert_eq!(late.tokens[&0], text(&slow, 0, 12));
    fixture.run();
    fixture.assert_idle();
}
