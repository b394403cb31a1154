//! Whatever happens to a request, its pages come back and others do not notice.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    backends::Spoiled,
    fixture::{Answer, Fixture, choices, generate, prompt, text},
    *,
};
use crate::{Goal, SequenceSpec, StartFrom, StepOutcome, SubmitError};

#[test]
fn a_deadline_ends_a_request_with_all_its_choices() {
    let mut fixture = Fixture::new(32);
    let mut spec = generate(&prompt(1, 6), 1, 1000);
    let begin = Instant::now();
    spec.goal = Goal::Generate { choices: choices(&[&[], &[]]) };
    spec.deadline = Some(begin + Duration::from_secs(5));
    let other = generate(&prompt(2, 6), 2, 8);
    let (mut late, mut events) =
        (fixture.handle.submit(spec).unwrap(), fixture.handle.submit(other.clone()).unwrap());
    for second in [1, 2, 5, 5] {
        fixture.engine.step_at(begin + Duration::from_secs(second)).unwrap();
    }
    let (mut answer, mut other_answer) = (Answer::default(), Answer::default());
    answer.read(&mut late);
    assert_eq!(answer.failed.unwrap().code, ErrorCode::DeadlineExceeded);
    assert_eq!((answer.tokens[&0].len(), answer.tokens[&1].len()), (2, 2));
    fixture.run();
    other_answer.read(&mut events);
    assert_eq!(other_answer.tokens[&0], text(&other, 0, 8));
    fixture.assert_idle();
}

#[test]
fn foreign_kv_fails_its_request_only_and_is_forgotten() {
    let mut fixture = Fixture::new(32);
    let (foreign, own) = (generate(&prompt(1, 9), 1, 6), generate(&prompt(2, 9), 2, 6));
    let mut adopting = foreign.clone();
    adopting.start = StartFrom::Adopted { pages: fixture.handle.pool().allocate(3).unwrap(), tokens: 9 };
    let answers = fixture.answers(vec![adopting, own.clone()]);
    assert_eq!(answers[0].failed.as_ref().unwrap().code, ErrorCode::PeerLost);
    assert!(answers[0].tokens.is_empty());
    assert_eq!(answers[1].tokens[&0], text(&own, 0, 6));
    let answer = fixture.answer(foreign.clone());
    assert_eq!((answer.cached_tokens, &answer.tokens[&0]), (0, &text(&foreign, 0, 6)));
    fixture.assert_idle();
}

#[test]
fn a_failed_device_stops_the_engine_and_everybody_is_told() {
    let failing = Spoiled::new(|step, logits| match step {
        3 => Err(BackendError::Device("gone".to_owned())),
        _ => logits,
    });
    let mut fixture = Fixture::over(failing, 8, |_| {});
    let mut events: Vec<_> =
        (0..4).map(|seed| fixture.handle.submit(generate(&prompt(seed, 9), seed, 50)).unwrap()).collect();
    while fixture.engine.step().is_ok() {}
    for events in &mut events {
        let mut answer = Answer::default();
        answer.read(events);
        assert_eq!(answer.failed.unwrap().code, ErrorCode::Unavailable);
        assert!(matches!(events.try_recv(), Err(crate::TryRecvError::Disconnected)));
    }
    assert_eq!(fixture.handle.submit(generate(&[1], 1, 1)).unwrap_err(), SubmitError::Stopped);
    fixture.assert_idle();
}

#[test]
fn logits_without_a_number_fail_the_request() {
    let spoiled = Spoiled::new(|step, logits| {
        let mut logits = logits?;
        if step == 2 {
            logits.values.fill(f32::NAN);
        }
        Ok(logits)
    });
    let mut fixture = Fixture::over(spoiled, 16, |_| {});
    let answer = fixture.answer(generate(&prompt(1, 6), 1, 6));
    assert_eq!((answer.failed.unwrap().code, answer.tokens[&0].len()), (ErrorCode::Internal, 1));
    fixture.assert_idle();
}

#[test]
fn too_many_waiting_are_refused() {
    let fixture = Fixture::with(16, |config| config.scheduler.max_waiting = 2);
    let spec = generate(&prompt(1, 6), 1, 6);
    let _kept = [fixture.handle.submit(spec.clone()).unwrap(), fixture.handle.submit(spec.clone()).unwrap()];
    let refused = fixture.handle.submit(spec.clone()).unwrap_err();
    assert_eq!(refused, SubmitError::Overloaded { waiting: 2, limit: 2 });
    assert_eq!(fixture.handle.load().waiting_prefill_tokens, 12);
}

#[test]
fn what_could_never_run_is_refused() {
    let fixture = Fixture::new(16);
    let spec = generate(&prompt(1, 6), 1, 6);
    let refused = |change: &dyn Fn(&mut SequenceSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        matches!(fixture.handle.submit(spec), Err(SubmitError::Invalid(_)))
    };
    assert!(refused(&|spec| spec.prompt_tokens = 0));
    assert!(refused(&|spec| spec.prompt_tokens = 7));
    assert!(refused(&|spec| spec.tokens = [1, 2, 3, 4, 5, 258].into()));
    assert!(refused(&|spec| spec.goal = Goal::Generate { choices: Vec::new() }));
    assert!(refused(&|spec| spec.goal = Goal::Prefill { sample: vec![1, 1] }));
    assert!(refused(&|spec| spec.start = StartFrom::Adopted { pages: Vec::new(), tokens: 1 }));
    assert!(refused(&|spec| spec.start = StartFrom::Adopted { pages: Vec::new(), tokens: 7 }));
}

#[test]
fn those_who_wait_with_pages_do_not_block_each_other() {
    let mut fixture = Fixture::new(8);
    let spec = |seed| generate(&prompt(seed, 22), seed, 4);
    // Four pages each are all there is, and each needs six.
    let adopt = |seed| {
        let pages = fixture.handle.pool().allocate(4).unwrap();
        SequenceSpec { start: StartFrom::Adopted { pages, tokens: 0 }, ..spec(seed) }
    };
    let adopting = (0..2).map(adopt).collect();
    for (seed, answer) in (0..2).zip(fixture.answers(adopting)) {
        assert_eq!(answer.tokens[&0], text(&spec(seed), 0, 4));
    }
    fixture.assert_idle();
}

#[derive(Clone, Debug)]
struct Client {
    prompt_tokens: usize,
    choices: usize,
    is_prefill: bool,
    submit_at: usize,
    /// Drops its events at this step, or stops a choice.
    leave_at: usize,
    stops_choice: bool,
}

fn client() -> impl Strategy<Value = Client> {
    (1..40usize, 1..4usize, any::<bool>(), 0..10usize, 0..40usize, any::<bool>()).prop_map(
        |(prompt_tokens, choices, is_prefill, submit_at, leave_at, stops_choice)| Client {
            prompt_tokens,
            choices,
            is_prefill,
            submit_at,
            leave_at,
            stops_choice,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Clients come and go at any step, over a pool that is too small for all.
    #[test]
    fn every_page_comes_back(clients in prop::collection::vec(client(), 1..8), pages in 12..30usize) {
        let mut fixture = Fixture::with(pages, |config| {
            config.scheduler.max_batch_tokens = 16;
            config.scheduler.event_buffer = 4;
        });
        let mut open: Vec<_> = clients.iter().map(|_| None).collect();
        for step in 0..60 {
            for (seed, client) in clients.iter().enumerate() {
                if step == client.submit_at {
                    let mut spec = generate(&prompt(seed as u64 % 3, client.prompt_tokens), seed as u64, 12);
                    let all: Vec<u32> = (0..client.choices as u32).collect();
                    spec.goal = match client.is_prefill {
                        true => Goal::Prefill { sample: all },
                        false => Goal::Generate { choices: choices(&vec![&[][..]; client.choices]) },
                    };
                    let events = fixture.handle.submit(spec.clone()).unwrap();
                    open[seed] = Some((spec, events, Answer::default()));
                }
                let Some((spec, events, answer)) = &mut open[seed] else { continue };
                answer.read(events);
                prop_assert!(answer.failed.is_none());
                for (choice, tokens) in &answer.tokens {
                    prop_assert_eq!(tokens, &text(spec, *choice, tokens.len()));
                }
                if step == client.leave_at && client.stops_choice {
                    events.stop_choice(0);
                } else if step == client.leave_at {
                    open[seed] = None;
                }
            }
            fixture.engine.step().unwrap();
            prop_assert!(fixture.handle.pool().counts().sums_to_total());
        }
        open.clear();
        fixture.run();
        prop_assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Idle);
        fixture.assert_idle();
    }
}
