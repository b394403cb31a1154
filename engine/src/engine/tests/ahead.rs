//! Steps enqueued before the one before has ended: nobody notices but the clock.

use std::sync::OnceLock;

use baton_protocol::{FinishReason, LogitBias};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{
    backends::SpoiledAhead,
    fixture::{Answer, Fixture, PAGE, choices, generate, mock, prompt, text},
    *,
};
use crate::{
    Goal, SequenceEvents, SequenceSpec, StartFrom,
    backend::mock::{EOS_TOKEN, MockConfig},
};

fn running_ahead() -> Box<dyn Backend> {
    mock(MockConfig { runs_ahead: true, ..MockConfig::default() })
}

fn ahead(pages: usize) -> Fixture {
    Fixture::over(running_ahead(), pages, |_| {})
}

fn greedy(seed: u64, prompt_tokens: usize, max_tokens: u32) -> SequenceSpec {
    let mut spec = generate(&prompt(seed, prompt_tokens), seed, max_tokens);
    spec.sampling.temperature = 0.0;
    spec
}

fn read(events: &mut SequenceEvents) -> Answer {
    let mut answer = Answer::default();
    answer.read(events);
    answer
}

#[test]
fn a_token_is_read_while_the_next_one_is_computed() {
    let mut fixture = ahead(32);
    let spec = greedy(1, 6, 4);
    let mut events = fixture.handle.submit(spec.clone()).unwrap();
    let mut answer = Answer::default();
    for (tokens, is_busy) in [(0, true), (1, true), (2, true), (3, true), (4, false)] {
        assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran);
        answer.read(&mut events);
        let read = answer.tokens.get(&0).map_or(0, Vec::len);
        assert_eq!((read, fixture.engine.ahead.is_busy()), (tokens, is_busy));
    }
    assert_eq!(answer.tokens[&0], text(&spec, 0, 4));
    assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Idle);
    fixture.assert_idle();
}

#[test]
fn prompts_in_chunks_and_full_pools_change_nothing() {
    let mut fixture = Fixture::over(running_ahead(), 12, |config| config.scheduler.max_batch_tokens = 8);
    let specs: Vec<_> = (0..6).map(|seed| greedy(seed, 3 + 4 * seed as usize, 20)).collect();
    for (spec, answer) in specs.iter().zip(fixture.answers(specs.clone())) {
        assert_eq!(answer.tokens[&0], text(spec, 0, 20));
    }
    assert!(fixture.engine.shared.metrics.preemptions.get() > 0);
    fixture.assert_idle();
}

/// Pages held at each collect, before it is booked.
fn watching_pages() -> (Fixture, Arc<Mutex<Vec<u64>>>) {
    let (pool, held) = (Arc::new(OnceLock::<Arc<KvPool>>::new()), Arc::new(Mutex::new(Vec::new())));
    let (watched, log) = (Arc::clone(&pool), Arc::clone(&held));
    let watch = Box::new(move |drawn| {
        log.lock().push(watched.get().unwrap().counts().running);
        drawn
    });
    let fixture = Fixture::over(Box::new(SpoiledAhead(running_ahead(), watch)), 8, |_| {});
    assert!(pool.set(Arc::clone(fixture.handle.pool())).is_ok());
    (fixture, held)
}

#[test]
fn a_step_in_vain_keeps_its_pages_until_it_has_run() {
    let (mut fixture, held) = watching_pages();
    let mut spec = greedy(1, 6, 20);
    spec.stop.token_ids = text(&spec, 0, 1);
    let mut events = fixture.handle.submit(spec.clone()).unwrap();
    (0..2).for_each(|_| assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran));
    assert_eq!(read(&mut events).finished[&0], FinishReason::Stop);
    assert_eq!(fixture.handle.pool().counts().running, 2);
    assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran);
    assert_eq!(*held.lock(), [2, 2]);
    fixture.assert_idle();
    // The same for one that is cancelled.
    spec.stop.token_ids.clear();
    let events = fixture.handle.submit(spec).unwrap();
    (0..2).for_each(|_| assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran));
    drop(events);
    assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran);
    assert_eq!(held.lock()[2..], [2, 2]);
    assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Idle);
    fixture.assert_idle();
}

#[test]
fn foreign_kv_is_found_late_and_fails_its_request_only() {
    for is_cancelled in [false, true] {
        let mut fixture = ahead(32);
        let (foreign, own) = (greedy(1, 9, 6), greedy(2, 9, 6));
        let mut adopting = foreign.clone();
        adopting.start = StartFrom::Adopted { pages: fixture.handle.pool().allocate(3).unwrap(), tokens: 9 };
        let mut beside = fixture.handle.submit(own.clone()).unwrap();
        (0..2).for_each(|_| assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Ran));
        let mut events = fixture.handle.submit(adopting).unwrap();
        // Enqueued now, and found out when the step after it is under way too.
        fixture.engine.step().unwrap();
        if is_cancelled {
            drop(events);
        } else {
            fixture.engine.step().unwrap();
            let answer = read(&mut events);
            assert_eq!(answer.failed.unwrap().code, ErrorCode::PeerLost);
            assert!(answer.tokens.is_empty());
        }
        fixture.run();
        assert_eq!(read(&mut beside).tokens[&0], text(&own, 0, 6));
        fixture.assert_idle();
        let answer = fixture.answer(foreign.clone());
        assert_eq!((answer.cached_tokens, &answer.tokens[&0]), (0, &text(&foreign, 0, 6)));
    }
}

#[test]
fn a_device_that_fails_late_stops_the_engine_and_everybody_is_told() {
    let mut collected = 0;
    let fail = move |drawn| {
        collected += 1;
        if collected == 3 { Err(BackendError::Device("gone".to_owned())) } else { drawn }
    };
    let mut fixture = Fixture::over(Box::new(SpoiledAhead(running_ahead(), Box::new(fail))), 8, |_| {});
    let mut events: Vec<_> = (0..4).map(|seed| fixture.handle.submit(greedy(seed, 9, 50)).unwrap()).collect();
    while fixture.engine.step().is_ok() {}
    for events in &mut events {
        assert_eq!(read(events).failed.unwrap().code, ErrorCode::Unavailable);
    }
    assert!(matches!(fixture.engine.step(), Err(EngineError::Stopped)));
    fixture.assert_idle();
}

#[test]
fn nothing_drawn_fails_the_request_and_the_step_after_it_is_in_vain() {
    let mut collected = 0;
    let spoil = move |drawn: Result<Vec<_>, _>| {
        collected += 1;
        drawn.map(|drawn| if collected == 2 { vec![None, drawn[1]] } else { drawn })
    };
    let mut fixture = Fixture::over(Box::new(SpoiledAhead(running_ahead(), Box::new(spoil))), 16, |_| {});
    let specs = vec![greedy(1, 6, 6), greedy(2, 6, 6)];
    let answers = fixture.answers(specs.clone());
    let failed = answers[0].failed.as_ref().unwrap();
    assert_eq!((failed.code, answers[0].tokens[&0].len()), (ErrorCode::Internal, 1));
    assert_eq!(answers[1].tokens[&0], text(&specs[1], 0, 6));
    fixture.assert_idle();
}

#[test]
fn an_engine_that_ends_hands_out_the_token_under_way() {
    let Fixture { mut engine, handle } = ahead(16);
    let spec = greedy(1, 6, 20);
    let mut events = handle.submit(spec.clone()).unwrap();
    engine.step().unwrap();
    drop(engine);
    let answer = read(&mut events);
    assert_eq!(
        (&answer.tokens[&0], answer.failed.unwrap().code),
        (&text(&spec, 0, 1), ErrorCode::Unavailable)
    );
    assert!(handle.pool().counts().is_idle());
}

/// Steps until nothing can go on without its reader, who then reads all there is.
#[test]
fn a_slow_reader_has_room_for_two_steps_and_pauses() {
    for max_tokens in [11, 12] {
        let mut fixture = Fixture::over(running_ahead(), 64, |config| {
            (config.scheduler.event_buffer, config.scheduler.layer_groups) = (0, 1);
        });
        let mut spec = greedy(1, 6, max_tokens);
        spec.goal = Goal::Generate { choices: choices(&[&[][..]; 8]) };
        let mut events = fixture.handle.submit(spec.clone()).unwrap();
        let (mut answer, mut pauses) = (Answer::default(), 0);
        for _ in 0..100 {
            match fixture.engine.step().unwrap() {
                StepOutcome::Ran => continue,
                StepOutcome::Stalled => pauses += 1,
                StepOutcome::Idle => {}
            }
            answer.read(&mut events);
        }
        assert!(pauses > 2);
        for choice in 0..8 {
            assert_eq!(answer.tokens[&choice], text(&spec, choice, max_tokens as usize));
        }
        fixture.assert_idle();
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Greedy,
    Random,
    Prefill,
}

#[derive(Clone, Debug)]
struct Client {
    kind: Kind,
    prompt_tokens: usize,
    choices: usize,
    max_tokens: u32,
    min_tokens: u32,
    /// Ends with the token at this place of its answer, if it gets so far.
    stops_at: Option<usize>,
    ignores_eos: bool,
    /// Tokens that were there before are less likely, and one is more.
    is_shaped: bool,
    submit_at: usize,
    /// Drops its events at this step, or stops its first choice.
    leave_at: Option<usize>,
    stops_choice: bool,
}

fn client() -> impl Strategy<Value = Client> {
    // Most are greedy, so that most steps are enqueued ahead.
    let kind = prop_oneof![8 => Just(Kind::Greedy), 1 => Just(Kind::Random), 1 => Just(Kind::Prefill)];
    let choices = prop_oneof![5 => Just(1usize), 1 => 2..4usize];
    let ends = (
        1..24u32,
        prop_oneof![4 => Just(0u32), 1 => 1..4u32],
        prop::option::of(0..12usize),
        any::<(bool, bool)>(),
    );
    let leaves = (prop::option::weighted(0.4, 0..50usize), any::<bool>());
    (kind, 1..40usize, choices, ends, 0..20usize, leaves).prop_map(
        |(kind, prompt_tokens, choices, ends, submit_at, (leave_at, stops_choice))| {
            let (max_tokens, min_tokens, stops_at, (ignores_eos, is_shaped)) = ends;
            Client {
                kind,
                prompt_tokens,
                choices,
                max_tokens,
                min_tokens,
                stops_at,
                ignores_eos,
                is_shaped,
                submit_at,
                leave_at,
                stops_choice,
            }
        },
    )
}

impl Client {
    /// Prompts of the same seed begin alike.
    fn spec(&self, seed: u64) -> SequenceSpec {
        let mut spec = greedy(seed % 3, self.prompt_tokens, self.max_tokens);
        let all: Vec<u32> = (0..self.choices as u32).collect();
        spec.goal = match self.kind {
            Kind::Prefill => Goal::Prefill { sample: all },
            Kind::Greedy | Kind::Random => Goal::Generate { choices: choices(&vec![&[][..]; self.choices]) },
        };
        if matches!(self.kind, Kind::Random) {
            spec.sampling.temperature = 1.0;
        }
        if self.is_shaped {
            (spec.sampling.repetition_penalty, spec.sampling.frequency_penalty) = (1.3, 0.2);
            spec.sampling.logit_bias.push(LogitBias { token: 40, bias: 30.5 });
        }
        spec.stop.token_ids = self.stops_at.map(|at| text(&spec, 0, at + 1)[at]).into_iter().collect();
        spec.stop.min_tokens = self.min_tokens;
        spec.stop.ignore_eos = self.ignores_eos;
        spec
    }
}

fn endable(pages: usize, runs_ahead: bool, context_pages: usize) -> Fixture {
    let config = MockConfig { runs_ahead, eos_probability: 0.05, ..MockConfig::default() };
    Fixture::over(mock(config), pages, |config| {
        config.eos_tokens = vec![EOS_TOKEN];
        config.context_tokens = context_pages * PAGE;
        config.scheduler.max_batch_tokens = 16;
        config.scheduler.event_buffer = 4;
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whoever comes and goes: answers are those of an engine that computes
    /// each alone and waits for every step, and every page comes back.
    #[test]
    fn answers_are_those_of_steps_that_are_waited_for(
        clients in prop::collection::vec(client(), 1..8),
        pages in 12..30usize,
    ) {
        let mut alone = endable(256, false, pages);
        let specs: Vec<_> = (0..).zip(&clients).map(|(seed, client)| client.spec(seed)).collect();
        let expected: Vec<Answer> = specs.iter().map(|spec| alone.answer(spec.clone())).collect();
        let mut fixture = endable(pages, true, pages);
        let mut open: Vec<_> = clients.iter().map(|_| None).collect();
        for step in 0..4000 {
            for ((client, spec), open) in clients.iter().zip(&specs).zip(&mut open) {
                if step == client.submit_at {
                    *open = Some((fixture.handle.submit(spec.clone()).unwrap(), Answer::default()));
                }
                if let Some((events, answer)) = open {
                    answer.read(events);
                }
                if Some(step) == client.leave_at {
                    match open {
                        Some((events, _)) if client.stops_choice => events.stop_choice(0),
                        _ => *open = None,
                    }
                }
            }
            let outcome = fixture.engine.step().unwrap();
            prop_assert!(fixture.handle.pool().counts().sums_to_total());
            if outcome == StepOutcome::Idle && step > 50 {
                break;
            }
        }
        for ((mut expected, client), open) in expected.into_iter().zip(&clients).zip(&mut open) {
            let Some((events, answer)) = open else { continue };
            answer.read(events);
            prop_assert!(answer.failed.is_none());
            if client.leave_at.is_some() {
                let (whole, part) = (expected.tokens.remove(&0), answer.tokens.remove(&0));
                prop_assert!(whole.unwrap_or_default().starts_with(&part.unwrap_or_default()));
                expected.finished.remove(&0);
                answer.finished.remove(&0);
            }
            prop_assert_eq!(&answer.tokens, &expected.tokens, "{:?}", client);
            prop_assert_eq!(&answer.finished, &expected.finished, "{:?}", client);
        }
        open.clear();
        prop_assert_eq!(fixture.engine.step().unwrap(), StepOutcome::Idle);
        fixture.assert_idle();
    }
}
