//! The coordinator's side of an attempt: what it is told, and what it says meanwhile.

use std::{future::Future, pin::pin, time::Duration};

use baton_engine::SequenceEvent;
use baton_protocol::{
    Bill, ErrorCode, Event, Failure, FinishReason, NodeId, PromptPart, Token,
    wire::{GenerateUp, StopChoice, generate_up::Message},
};
use futures::{Stream, StreamExt};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

/// Why nothing more happens in an attempt.
#[derive(Debug)]
pub(crate) enum End {
    /// Every choice has ended and the caller knows.
    Answered,
    /// The attempt failed; the caller is told last.
    Failed(Failure),
}

/// Who opened the attempt. Keeps the promises of the stream: positions of a
/// choice are contiguous, nothing of a choice follows its end, and the bill
/// comes once, before the last end.
pub(crate) struct Caller<S> {
    says: S,
    /// The caller will say nothing more, which is no reason to end.
    is_silent: bool,
    events: mpsc::Sender<Event>,
    choices: Vec<Told>,
    /// Sent before the last end.
    pub(crate) bill: Bill,
    /// Since when all KV of the prompt is here.
    decoding: Option<Instant>,
}

/// What was told of one choice.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Position of the token that comes next.
    next: u32,
    finished: bool,
}

/// Tokens of a prompt that one message tells of.
const PROMPT_TOKENS: usize = 512;

// === impl Caller ===

impl<S: Stream<Item = Result<GenerateUp, Status>> + Unpin> Caller<S> {
    /// A caller who has been told `known` tokens of each choice before, or its end.
    pub(crate) fn new(
        says: S,
        events: mpsc::Sender<Event>,
        known: impl Iterator<Item = Option<u32>>,
    ) -> Self {
        let told = |known: Option<u32>| Told { next: known.unwrap_or(0), finished: known.is_none() };
        let choices = known.map(told).collect();
        Self { says, is_silent: false, events, choices, bill: Bill::default(), decoding: None }
    }

    /// Whether this choice has ended, or never was.
    pub(crate) fn has_finished(&self, choice: u32) -> bool {
        self.choices.get(choice as usize).is_none_or(|told| told.finished)
    }

    /// Notes what the engine's own prefill of a prompt costs, `elapsed` after it was submitted.
    pub(crate) fn bill_local(&mut self, event: &SequenceEvent, elapsed: Duration) {
        match event {
            SequenceEvent::Started { cached_tokens, .. } => {
                self.bill = Bill { queue: elapsed, cached_tokens: *cached_tokens as u32, ..Bill::default() };
            }
            SequenceEvent::Token(_) | SequenceEvent::Embedding(_) if self.bill.prefill.is_zero() => {
                self.bill.prefill = elapsed.saturating_sub(self.bill.queue);
                self.decodes();
            }
            _ => {}
        }
    }

    /// Notes that all KV of the prompt is here.
    pub(crate) fn decodes(&mut self) {
        self.decoding = Some(Instant::now());
    }

    /// Tells how much of the prompt was cached here.
    pub(crate) async fn accept(&mut self, cached_tokens: u32) -> Result<(), End> {
        self.tell(Event::Accepted { cached_tokens }).await
    }

    /// Tells who begins to compute the prompt, this node if nobody else, behind so many tokens.
    pub(crate) async fn computing(&self, node: Option<NodeId>, cached_tokens: u32) -> Result<(), End> {
        self.tell(Event::Computing { node, cached_tokens }).await
    }

    /// Tells that a prefill node was lost that had taken the prompt and not computed it.
    pub(crate) async fn broke_off(&self, node: NodeId) -> Result<(), End> {
        self.tell(Event::BrokeOff { node }).await
    }

    /// Tells how likely tokens of the prompt are, in messages of bounded size.
    pub(crate) async fn prompt(&self, part: &PromptPart) -> Result<(), End> {
        for (first, tokens) in (part.first..).step_by(PROMPT_TOKENS).zip(part.tokens.chunks(PROMPT_TOKENS)) {
            self.tell(Event::Prompt(PromptPart { first, tokens: tokens.to_vec() })).await?;
        }
        Ok(())
    }

    /// Tells the embedding that stands in the place of an answer, and the end.
    pub(crate) async fn embedding(&mut self, vector: Vec<f32>) -> Result<(), End> {
        self.tell(Event::Embedding(vector)).await?;
        self.finish(0, FinishReason::Stop).await
    }

    /// Tells a token, unless its choice has ended.
    pub(crate) async fn token(&mut self, token: Token) -> Result<(), End> {
        if self.has_finished(token.choice) {
            return Ok(());
        }
        let told = &mut self.choices[token.choice as usize];
        if token.position != told.next {
            let message =
                format!("token {} of choice {} in place of {}", token.position, token.choice, told.next);
            return Err(End::Failed(Failure::new(ErrorCode::Internal, message)));
        }
        told.next += 1;
        self.tell(Event::Token(token)).await
    }

    /// Tells the end of a choice, unless it was told.
    ///
    /// # Errors
    /// [`End::Answered`] after the last one.
    pub(crate) async fn finish(&mut self, choice: u32, reason: FinishReason) -> Result<(), End> {
        if self.has_finished(choice) {
            return Ok(());
        }
        self.choices[choice as usize].finished = true;
        let is_last = self.choices.iter().all(|told| told.finished);
        if is_last {
            let mut bill = std::mem::take(&mut self.bill);
            bill.decode = self.decoding.map(|since| since.elapsed()).unwrap_or_default();
            self.tell(Event::Bill(bill)).await?;
        }
        self.tell(Event::Finished { choice, reason }).await?;
        if is_last { Err(End::Answered) } else { Ok(()) }
    }

    /// The next choice of which the caller wants no more tokens. Waits for
    /// ever when the caller has nothing to say; losing nothing when dropped.
    ///
    /// # Errors
    /// When the caller is gone, or says what it must not.
    pub(crate) async fn stopped(&mut self) -> Result<u32, End> {
        while !self.is_silent {
            match self.says.next().await {
                Some(Ok(GenerateUp { message: Some(Message::StopChoice(StopChoice { choice })) })) => {
                    return Ok(choice);
                }
                Some(Ok(GenerateUp { message: Some(Message::Open(_)) })) => {
                    return Err(failed(ErrorCode::InvalidRequest, "opened twice"));
                }
                // A word of a newer protocol.
                Some(Ok(GenerateUp { message: None })) => {}
                Some(Err(_)) => return Err(failed(ErrorCode::Cancelled, "the caller is gone")),
                None => self.is_silent = true,
            }
        }
        std::future::pending().await
    }

    /// Waits for `work` and heeds the caller meanwhile.
    ///
    /// # Errors
    /// When the caller ends the attempt.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                choice = self.stopped() => self.finish(choice?, FinishReason::Stop).await?,
                done = &mut work => return Ok(done),
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| failed(ErrorCode::Cancelled, "the caller is gone"))
    }
}

fn failed(code: ErrorCode, message: &str) -> End {
    End::Failed(Failure::new(code, message))
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}
