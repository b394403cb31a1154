//! The engine on its thread.

use std::time::Duration;

use super::{
    fixture::{Fixture, generate, mock, prompt, text},
    *,
};
use crate::{EngineWorker, SequenceEvents, SubmitError, backend::mock::MockConfig};

fn wait_for(events: &mut SequenceEvents) -> (Vec<u32>, Option<Failure>) {
    let (mut tokens, mut failed) = (Vec::new(), None);
    while let Some(event) = events.blocking_recv() {
        match event {
            SequenceEvent::Token(token) => tokens.push(token.id),
            SequenceEvent::Failed(failure) => failed = Some(failure),
            _ => {}
        }
    }
    (tokens, failed)
}

#[test]
fn answers_come_from_the_thread_again_and_again() {
    let (worker, handle) = EngineWorker::start(Fixture::new(64).engine);
    for round in 0..3 {
        let specs: Vec<_> = (0..4).map(|seed| generate(&prompt(seed, 9), seed + round, 7)).collect();
        let mut events: Vec<_> = specs.iter().map(|spec| handle.submit(spec.clone()).unwrap()).collect();
        for (spec, events) in specs.iter().zip(&mut events) {
            assert_eq!(wait_for(events), (text(spec, 0, 7), None));
        }
    }
    worker.shutdown();
    assert!(handle.pool().counts().is_idle());
    assert_eq!(handle.submit(generate(&[1], 1, 1)).unwrap_err(), SubmitError::Stopped);
}

#[test]
fn shutdown_fails_what_runs_and_returns_pages() {
    let slow = MockConfig { step_us_base: 500, ..MockConfig::default() };
    let fixture = Fixture::over(mock(slow), 1024, |_| {});
    let (worker, handle) = EngineWorker::start(fixture.engine);
    let mut events = handle.submit(generate(&prompt(1, 9), 1, 4000)).unwrap();
    while !matches!(events.blocking_recv(), Some(SequenceEvent::Token(_))) {}
    drop(worker);
    assert_eq!(wait_for(&mut events).1.unwrap().code, ErrorCode::Unavailable);
    assert!(handle.pool().counts().is_idle());
}

#[test]
fn dropping_the_events_cancels() {
    let (_worker, handle) = EngineWorker::start(Fixture::new(1024).engine);
    let mut events = handle.submit(generate(&prompt(1, 9), 1, 4000)).unwrap();
    while !matches!(events.blocking_recv(), Some(SequenceEvent::Token(_))) {}
    drop(events);
    let is_busy = || handle.load().running + handle.load().waiting > 0;
    while is_busy() || !handle.pool().counts().is_idle() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
