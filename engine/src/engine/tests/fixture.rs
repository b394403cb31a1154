//! An engine with small pages (4 tokens), and answers put together from events.

use std::collections::BTreeMap;

use baton_protocol::{Failure, FinishReason, PromptToken, RequestId, Sampling, Stop};

use crate::{
    ChoiceSpec, Engine, EngineConfig, EngineHandle, Goal, SequenceEvent, SequenceEvents, SequenceSpec,
    StartFrom, StepOutcome,
    backend::{
        Backend,
        mock::{self, MockBackend, MockConfig},
    },
};

pub const PAGE: usize = 4;

pub struct Fixture {
    pub engine: Engine,
    pub handle: EngineHandle,
}

/// What came back for one request.
#[derive(Debug, Default)]
pub struct Answer {
    pub is_started: bool,
    pub cached_tokens: usize,
    /// What was told of the prompt, and the place of the first token told of.
    pub prompt: Vec<PromptToken>,
    pub prompt_from: u32,
    pub embedding: Option<Vec<f32>>,
    pub tokens: BTreeMap<u32, Vec<u32>>,
    /// Position of each choice's first token.
    pub first: BTreeMap<u32, u32>,
    pub finished: BTreeMap<u32, FinishReason>,
    pub failed: Option<Failure>,
}

pub fn mock(config: MockConfig) -> Box<dyn Backend> {
    Box::new(MockBackend::new(config, PAGE as u32))
}

pub fn prompt(seed: u64, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 32 + (seed as u32 * 31 + i * 7) % 90).collect()
}

pub fn generate(prompt: &[u32], seed: u64, max_tokens: u32) -> SequenceSpec {
    SequenceSpec {
        request: RequestId(u128::from(seed)),
        tenant: "tenant".to_owned(),
        tokens: prompt.into(),
        prompt_tokens: prompt.len(),
        sampling: Sampling { seed, ..Sampling::default() },
        stop: Stop { max_tokens, min_tokens: 0, ignore_eos: true, token_ids: Vec::new() },
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        goal: Goal::Generate { choices: choices(&[&[]]) },
        start: StartFrom::Cold,
        deadline: None,
        itl: None,
    }
}

/// Choices 0.. that know these tokens.
pub fn choices(known: &[&[u32]]) -> Vec<ChoiceSpec> {
    (0..).zip(known).map(|(choice, known)| ChoiceSpec { choice, generated: known.to_vec() }).collect()
}

/// What the mock answers.
pub fn text(spec: &SequenceSpec, choice: u32, tokens: usize) -> Vec<u32> {
    mock::expected(&spec.tokens[..spec.prompt_tokens], &spec.sampling, choice, tokens)
}

impl Fixture {
    pub fn new(pages: usize) -> Self {
        Self::with(pages, |_| {})
    }

    pub fn with(pages: usize, change: impl FnOnce(&mut EngineConfig)) -> Self {
        Self::over(mock(MockConfig::default()), pages, change)
    }

    pub fn over(backend: Box<dyn Backend>, pages: usize, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig::new(pages, 1 << 20);
        change(&mut config);
        let engine = Engine::new(backend, config).unwrap();
        let handle = engine.handle();
        Self { engine, handle }
    }

    /// Steps until nothing is left; the pages sum to the pool after each.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let outcome = self.engine.step().unwrap();
            assert!(self.handle.pool().counts().sums_to_total());
            if outcome == StepOutcome::Idle {
                return;
            }
        }
        panic!(
            "the engine does not come to rest: {:?} {:?}",
            self.handle.load(),
            self.handle.pool().counts()
        );
    }

    pub fn answers(&mut self, specs: Vec<SequenceSpec>) -> Vec<Answer> {
        let submit = |spec| self.handle.submit(spec).unwrap();
        let mut events: Vec<SequenceEvents> = specs.into_iter().map(submit).collect();
        let mut answers: Vec<Answer> = events.iter().map(|_| Answer::default()).collect();
        for _ in 0..10_000 {
            let outcome = self.engine.step().unwrap();
            for (events, answer) in events.iter_mut().zip(&mut answers) {
                answer.read(events);
            }
            if outcome == StepOutcome::Idle {
                return answers;
            }
        }
        panic!(
            "the engine does not come to rest: {:?} {:?}",
            self.handle.load(),
            self.handle.pool().counts()
        );
    }

    pub fn answer(&mut self, spec: SequenceSpec) -> Answer {
        self.answers(vec![spec]).remove(0)
    }

    pub fn assert_idle(&self) {
        self.handle.pool().check_integrity().unwrap();
        assert!(self.handle.pool().counts().is_idle(), "{:?}", self.handle.pool().counts());
    }
}

impl Answer {
    /// Takes what has come, and checks what every reader relies on.
    pub fn read(&mut self, events: &mut SequenceEvents) {
        while let Ok(event) = events.try_recv() {
            match event {
                SequenceEvent::Started { cached_tokens, .. } => {
                    assert!(!std::mem::replace(&mut self.is_started, true), "started twice");
                    self.cached_tokens = cached_tokens;
                }
                SequenceEvent::Prompt(part) => {
                    assert!(self.tokens.is_empty(), "of the prompt after a token");
                    if self.prompt.is_empty() {
                        self.prompt_from = part.first;
                    }
                    let next = self.prompt_from as usize + self.prompt.len();
                    assert_eq!(part.first as usize, next, "a gap in the prompt");
                    self.prompt.extend(part.tokens);
                }
                SequenceEvent::Embedding(vector) => {
                    assert_eq!(self.embedding.replace(vector), None, "two embeddings");
                }
                SequenceEvent::Token(token) => {
                    assert!(!self.finished.contains_key(&token.choice), "a token after its choice's end");
                    let first = *self.first.entry(token.choice).or_insert(token.position);
                    let tokens = self.tokens.entry(token.choice).or_default();
                    assert_eq!(token.position as usize, first as usize + tokens.len(), "a gap in the answer");
                    tokens.push(token.id);
                }
                SequenceEvent::Finished { choice, reason } => {
                    assert_eq!(self.finished.insert(choice, reason), None, "two ends of a choice");
                }
                SequenceEvent::Failed(failure) => {
                    assert_eq!(self.failed.replace(failure), None, "two failures");
                }
                SequenceEvent::Computed { .. } | SequenceEvent::Prefilled => {}
            }
        }
    }
}
