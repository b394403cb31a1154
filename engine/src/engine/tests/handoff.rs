//! A prompt computed by one engine and continued by another.

use std::io;

use baton_protocol::{KvSink, KvSource, KvSpan, Token};
use parking_lot::Mutex;

use super::{
    backends::Watched,
    fixture::{Answer, Fixture, choices, generate, mock, prompt, text},
    *,
};
use crate::{
    Goal, SequenceSpec, StartFrom, StepOutcome,
    backend::mock::{MockBackend, MockConfig},
    kv::{Hold, PageSpan},
};

fn prefill(mut spec: SequenceSpec, sample: &[u32]) -> SequenceSpec {
    spec.goal = Goal::Prefill { sample: sample.to_vec() };
    spec
}

/// What a handoff hears of a prompt.
#[derive(Default)]
struct Heard {
    source: Option<PageSpan>,
    computed: Vec<KvSpan>,
    first: Vec<Token>,
    finished: Vec<u32>,
    is_done: bool,
}

impl Heard {
    fn hear(&mut self, event: SequenceEvent, pool: &Arc<KvPool>, tokens: u32) {
        match event {
            SequenceEvent::Started { pages, .. } => {
                assert!(pages.iter().all(|page| page.hold() == Hold::Sending));
                self.source = Some(PageSpan::new(Arc::clone(pool), pages, 0, tokens));
            }
            SequenceEvent::Computed { layers, tokens } => {
                self.computed.push(pool.shape().span(layers, tokens));
            }
            event @ (SequenceEvent::Prompt(_) | SequenceEvent::Embedding(_)) => panic!("{event:?}"),
            SequenceEvent::Token(token) => self.first.push(token),
            SequenceEvent::Finished { choice, .. } => self.finished.push(choice),
            SequenceEvent::Prefilled => self.is_done = true,
            SequenceEvent::Failed(failure) => panic!("{failure}"),
        }
    }
}

fn run(fixture: &mut Fixture, spec: SequenceSpec) -> Heard {
    let (mut heard, tokens) = (Heard::default(), spec.tokens.len() as u32);
    let mut events = fixture.handle.submit(spec).unwrap();
    while fixture.engine.step().unwrap() != StepOutcome::Idle {}
    while let Ok(event) = events.try_recv() {
        heard.hear(event, fixture.handle.pool(), tokens);
    }
    assert!(heard.is_done);
    heard
}

fn copy(from: &PageSpan, to: &PageSpan, spans: &[KvSpan]) {
    for span in spans {
        let mut bytes = Vec::new();
        let mut take = |slices: &[io::IoSlice<'_>]| {
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            Ok(())
        };
        from.read(span, &mut take).unwrap();
        let mut rest = bytes.as_slice();
        to.write(span, &mut |slices| {
            slices.iter_mut().try_for_each(|slice| io::Read::read_exact(&mut rest, slice))
        })
        .unwrap();
    }
}

#[test]
fn a_handed_off_answer_is_the_local_one() {
    for tokens in [3, 16, 37] {
        let spec = generate(&prompt(4, tokens), 4, 9);
        let mut from = Fixture::with(32, |config| config.scheduler.max_batch_tokens = 16);
        let heard = run(&mut from, prefill(spec.clone(), &[0, 1]));
        assert_eq!(
            heard.first.iter().map(|token| (token.choice, token.position)).collect::<Vec<_>>(),
            [(0, 0), (1, 0)]
        );

        let mut to = Fixture::over(Box::new(MockBackend::new(MockConfig::default(), 8)), 32, |_| {});
        let pool = Arc::clone(to.handle.pool());
        let promise = pool.promise(pool.shape().pages_for(tokens)).unwrap();
        let sink = PageSpan::new(pool, promise.bind(), 0, tokens as u32);
        copy(heard.source.as_ref().unwrap(), &sink, &heard.computed);
        assert!(from.handle.pool().counts().sending > 0 && to.handle.pool().counts().receiving > 0);

        let known: Vec<&[u32]> = heard.first.iter().map(|token| std::slice::from_ref(&token.id)).collect();
        let mut adopted = spec.clone();
        adopted.goal = Goal::Generate { choices: choices(&known) };
        adopted.start = StartFrom::Adopted { pages: sink.into_pages(), tokens };
        let answer = to.answer(adopted);
        for choice in 0..2 {
            let whole = [known[choice as usize], &answer.tokens[&choice]].concat();
            assert_eq!(whole, text(&spec, choice, 9), "prompt of {tokens}, choice {choice}");
        }
        assert_eq!(
            to.engine.shared.metrics.prompt_tokens.get(),
            0,
            "nothing of the prompt was computed again"
        );
        // The pages outlive the sequence as long as the handoff reads them, then they are cache.
        assert_eq!(from.handle.pool().counts().sending as usize, tokens.div_ceil(4));
        drop(heard);
        from.assert_idle();
        to.assert_idle();
        assert_eq!(from.handle.pool().counts().cached as usize, tokens / 4);
        assert!(to.handle.pool().counts().cached as usize >= tokens / 8);
    }
}

#[test]
fn every_row_is_reported_once() {
    let mut fixture = Fixture::with(32, |config| {
        config.scheduler.max_batch_tokens = 8;
        config.scheduler.layer_groups = 3;
    });
    fixture.answer(generate(&prompt(4, 9), 4, 2));
    let heard = run(&mut fixture, prefill(generate(&prompt(4, 30), 4, 9), &[0]));
    let mut seen = [[0; 30]; 4];
    for span in &heard.computed {
        for layer in span.layers.clone() {
            span.tokens.clone().for_each(|token| seen[layer as usize][token as usize] += 1);
        }
    }
    assert_eq!(seen, [[1; 30]; 4]);
    assert_eq!(
        heard.computed[0],
        fixture.handle.pool().shape().span(0..4, 0..8),
        "the cached part comes first"
    );
    assert!(heard.computed.iter().all(|span| span.tokens.start % 4 == 0));
}

#[test]
fn layers_are_reported_while_later_ones_compute() {
    let events = Arc::new(Mutex::new(None));
    let reported = Arc::new(Mutex::new(Vec::new()));
    let (inside, log) = (Arc::clone(&events), Arc::clone(&reported));
    let watch = move |layer| {
        let mut events = inside.lock();
        let Some(events): &mut Option<crate::SequenceEvents> = &mut events else { return };
        while let Ok(event) = events.try_recv() {
            if let SequenceEvent::Computed { layers, .. } = event {
                log.lock().push((layer, layers));
            }
        }
    };
    let backend = Watched(mock(MockConfig::default()), Box::new(watch));
    let mut fixture = Fixture::over(Box::new(backend), 32, |config| config.scheduler.layer_groups = 2);
    *events.lock() = Some(fixture.handle.submit(prefill(generate(&prompt(4, 10), 4, 9), &[])).unwrap());
    fixture.run();
    assert_eq!(*reported.lock(), [(1, 0..2), (3, 2..4)]);
}

#[test]
fn a_choice_may_end_with_its_first_token() {
    let mut fixture = Fixture::new(32);
    let mut spec = generate(&prompt(4, 10), 4, 1);
    let heard = run(&mut fixture, prefill(spec.clone(), &[0, 1]));
    assert_eq!((heard.first.len(), &heard.finished[..]), (2, &[0, 1][..]));
    drop(heard);
    spec.stop.max_tokens = 5;
    spec.stop.token_ids = text(&spec, 1, 1);
    let heard = run(&mut fixture, prefill(spec, &[1]));
    assert_eq!((heard.first.len(), &heard.finished[..]), (0, &[1][..]));
}

#[test]
fn an_incomplete_handoff_is_finished_here() {
    let spec = generate(&prompt(4, 30), 4, 9);
    let mut from = Fixture::new(32);
    let heard = run(&mut from, prefill(spec.clone(), &[0]));
    for kept in [0, 5, 16, 29, 30] {
        let mut to = Fixture::new(32);
        let pages = to.handle.pool().allocate(8).unwrap();
        let sink = PageSpan::new(Arc::clone(to.handle.pool()), pages, 0, 30);
        if kept > 0 {
            let span = to.handle.pool().shape().span(0..4, 0..kept);
            copy(heard.source.as_ref().unwrap(), &sink, &[span]);
        }
        let mut rest = spec.clone();
        rest.start = StartFrom::Adopted { pages: sink.into_pages(), tokens: kept as usize };
        let answer = to.answer(rest);
        assert_eq!((answer.cached_tokens, &answer.tokens[&0]), (kept.min(29) as usize, &text(&spec, 0, 9)));
        to.assert_idle();
    }
}

#[test]
fn prompts_for_others_survive_a_full_pool() {
    let mut fixture = Fixture::new(12);
    let answers: Vec<_> = (0..3).map(|seed| generate(&prompt(seed, 6), seed, 20)).collect();
    let mut events: Vec<_> =
        answers.iter().map(|spec| fixture.handle.submit(spec.clone()).unwrap()).collect();
    let mut read: Vec<_> = events.iter().map(|_| Answer::default()).collect();
    let heard = {
        let spec = generate(&prompt(9, 14), 9, 4);
        let mut heard = Heard::default();
        let mut prompt = fixture.handle.submit(prefill(spec, &[0])).unwrap();
        while !heard.is_done {
            fixture.engine.step().unwrap();
            read.iter_mut().zip(&mut events).for_each(|(answer, events)| answer.read(events));
            while let Ok(event) = prompt.try_recv() {
                heard.hear(event, fixture.handle.pool(), 14);
            }
        }
        heard
    };
    fixture.run();
    read.iter_mut().zip(&mut events).for_each(|(answer, events)| answer.read(events));
    for (spec, answer) in answers.iter().zip(&read) {
        assert_eq!(answer.tokens[&0], text(spec, 0, 20));
    }
    assert_eq!(fixture.handle.pool().counts().sending, 4);
    drop(heard);
    fixture.assert_idle();
}
