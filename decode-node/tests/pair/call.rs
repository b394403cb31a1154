//! One attempt as a coordinator makes it.

use std::time::Duration;

use baton_protocol::{
    Bill, Event, Failure, FinishReason, PromptToken, Request, RequestId, Sampling, Stop, Token, TopLogprob,
    wire::{
        ChoiceJournal, GenerateDown, GenerateUp, Open, PrefillCandidate, StopChoice, generate_up::Message,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::sandbox::DecodeRoom;

/// Far longer than anything here takes; reached only by something that hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An open attempt. Dropping it cancels.
pub struct Call {
    up: mpsc::Sender<GenerateUp>,
    down: Streaming<GenerateDown>,
    pub answer: Answer,
}

/// What was received so far. Panics on an event that breaks the stream's promises.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub cached_tokens: Option<u32>,
    pub prompt: Vec<PromptToken>,
    pub embedding: Option<Vec<f32>>,
    pub choices: Vec<Choice>,
    pub bill: Option<Bill>,
    pub failure: Option<Failure>,
    /// Who computed the prompt, one after the other; none: the decode node.
    pub computing: Vec<Option<String>>,
    /// Prefill nodes that took it and were lost.
    pub broke_off: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Option<f32>>,
    pub top: Vec<Vec<TopLogprob>>,
    pub end: Option<FinishReason>,
}

/// A request of `prompt` whose tokens are drawn at temperature 1.
pub fn request(prompt: Vec<u32>, seed: u64, choices: u32, max_tokens: u32) -> Request {
    Request {
        id: RequestId(u128::from(seed) << 32 | prompt.len() as u128),
        model: "mock".to_owned(),
        tenant: "tenant".to_owned(),
        tokens: prompt,
        sampling: Sampling { seed, ..Sampling::default() },
        stop: Stop { max_tokens, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
        choices,
        logprobs: true,
        top_logprobs: 2,
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: PATIENCE,
    }
}

/// A first attempt.
pub fn open(request: &Request, candidates: Vec<PrefillCandidate>) -> Open {
    Open { request: Some(request.into()), candidates, ..Open::default() }
}

// === impl Call ===

impl Call {
    pub async fn open(decode: &DecodeRoom, open: Open) -> Self {
        let journal = match open.journal.as_slice() {
            [] => vec![
                ChoiceJournal::default();
                open.request.as_ref().map_or(0, |request| request.choices as usize)
            ],
            journal => journal.to_vec(),
        };
        let (up, says) = mpsc::channel(16);
        up.send(GenerateUp { message: Some(Message::Open(open)) }).await.unwrap();
        let down = decode.client().generate(ReceiverStream::new(says)).await.unwrap().into_inner();
        Self { up, down, answer: Answer::after(&journal) }
    }

    /// The next event, checked against those before it.
    pub async fn next(&mut self) -> Option<Event> {
        let message = timeout(PATIENCE, self.down.message()).await.expect("the attempt hangs").unwrap();
        let event = Event::try_from(message?).unwrap();
        self.answer.take(event.clone());
        Some(event)
    }

    /// Goes on until the answer is as wanted, which it must be before it ends.
    pub async fn until(&mut self, is_enough: impl Fn(&Answer) -> bool) {
        while !is_enough(&self.answer) {
            let event = self.next().await;
            assert!(event.is_some() && self.answer.failure.is_none(), "ended too early: {:?}", self.answer);
        }
    }

    pub async fn stop(&self, choice: u32) {
        self.up.send(GenerateUp { message: Some(Message::StopChoice(StopChoice { choice })) }).await.unwrap();
    }

    /// Everything up to the end.
    pub async fn finish(mut self) -> Answer {
        while self.next().await.is_some() {}
        assert!(self.answer.has_ended(), "the stream ended without an outcome: {:?}", self.answer);
        self.answer
    }
}

/// One whole attempt.
pub async fn answer(decode: &DecodeRoom, open: Open) -> Answer {
    Call::open(decode, open).await.finish().await
}

// === impl Choice ===

impl Choice {
    pub fn push(&mut self, token: Token) {
        self.tokens.push(token.id);
        self.logprobs.push(token.logprob);
        self.top.push(token.top);
    }
}

// === impl Answer ===

impl Answer {
    fn after(journal: &[ChoiceJournal]) -> Self {
        let choice = |choice: &ChoiceJournal| Choice {
            tokens: choice.tokens.clone(),
            end: choice.finished.then_some(FinishReason::Stop),
            ..Choice::default()
        };
        Self { choices: journal.iter().map(choice).collect(), ..Self::default() }
    }

    /// The tokens of all choices.
    pub fn tokens(&self) -> Vec<&[u32]> {
        self.choices.iter().map(|choice| choice.tokens.as_slice()).collect()
    }

    pub fn ends(&self) -> Vec<Option<FinishReason>> {
        self.choices.iter().map(|choice| choice.end).collect()
    }

    pub fn bill(&self) -> &Bill {
        self.bill.as_ref().expect("an answered attempt has a bill")
    }

    /// As a coordinator's journal, with the first `known[i]` tokens of choice `i`.
    pub fn journal(&self, known: &[usize]) -> Vec<ChoiceJournal> {
        let entry = |(choice, known): (&Choice, &usize)| ChoiceJournal {
            tokens: choice.tokens.iter().copied().take(*known).collect(),
            finished: *known > choice.tokens.len(),
        };
        self.choices.iter().zip(known).map(entry).collect()
    }

    fn has_ended(&self) -> bool {
        self.failure.is_some() || self.choices.iter().all(|choice| choice.end.is_some())
    }

    fn take(&mut self, event: Event) {
        assert!(self.failure.is_none(), "{event:?} after a failure");
        let is_first_word = matches!(event, Event::Accepted { .. } | Event::Failed(_));
        assert!(is_first_word || self.cached_tokens.is_some(), "{event:?} before accepted");
        match event {
            Event::Accepted { cached_tokens } => {
                assert_eq!(self.cached_tokens.replace(cached_tokens), None, "accepted twice");
            }
            Event::BrokeOff { node } => self.broke_off.push(node.0),
            Event::Computing { node, .. } => self.computing.push(node.map(|node| node.0)),
            Event::Prompt(part) => {
                assert!(
                    self.choices.iter().all(|choice| choice.logprobs.is_empty()),
                    "{part:?} after a token"
                );
                self.prompt.extend(part.tokens);
            }
            Event::Embedding(vector) => {
                assert_eq!(self.embedding.replace(vector), None, "two embeddings");
            }
            Event::Token(token) => {
                assert!(self.bill.is_none(), "a token after the bill");
                let choice = &mut self.choices[token.choice as usize];
                assert_eq!(choice.end, None, "{token:?} after its choice's end");
                assert_eq!(token.position as usize, choice.tokens.len(), "{token:?} out of order");
                choice.push(token);
            }
            Event::Finished { choice, reason } => {
                assert_eq!(
                    self.choices[choice as usize].end.replace(reason),
                    None,
                    "choice {choice} ended twice"
                );
                assert_eq!(self.bill.is_some(), self.has_ended(), "the bill comes right before the last end");
            }
            Event::Bill(bill) => assert_eq!(self.bill.replace(bill), None, "two bills"),
            Event::Failed(failure) => self.failure = Some(failure),
        }
    }
}
