//! One prompt's way through a prefill node: what the engine reports, said in
//! the words of a handoff.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_engine::{
    EngineHandle, SequenceEvent, SequenceEvents, SequenceSpec, SubmitError,
    kv::{KvPool, PageSpan},
};
use baton_kv_transfer::Progress;
use baton_protocol::{ErrorCode, Failure, Token};
use baton_traces::Span;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{PrefillMetrics, metrics::Outcome, rescue::Rescue};

/// Passes a sequence's events on as progress. Dropping it cancels the sequence.
pub(crate) struct Passage {
    pub(crate) progress: mpsc::Sender<Progress>,
    pub(crate) pool: Arc<KvPool>,
    /// Tokens of the prompt: KV of `0..tokens` is what the source covers.
    pub(crate) tokens: u32,
    pub(crate) first: FirstTokens,
    pub(crate) submitted: Instant,
    pub(crate) span: Span,
    pub(crate) metrics: PrefillMetrics,
    /// Counted when the passage is dropped; none before it runs.
    pub(crate) outcome: Option<Outcome>,
    /// This prompt's part of the node's room.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// The first token of every sampled choice, collected until all are known. A
/// choice whose first draw is a stop token has none: FIRST goes without it, and
/// the decode node takes its absence as the choice's end.
pub(crate) struct FirstTokens {
    /// Choices that have neither drawn a token nor ended.
    open: BTreeSet<u32>,
    tokens: Vec<Token>,
    started: Option<Instant>,
    told: bool,
}

/// The handoff has ended on the other side of the channel.
struct GivenUp;

// === impl Passage ===

impl Passage {
    /// Runs until the prompt is done, has failed, or nobody listens.
    pub(crate) async fn run(mut self, mut events: SequenceEvents) {
        self.outcome = Some(Outcome::GivenUp);
        if let Ok(outcome) = self.pass(&mut events).await {
            self.outcome = Some(outcome);
        }
    }

    /// The same, behind what another node gives of the prompt.
    pub(crate) async fn run_after(mut self, rescue: Rescue, engine: EngineHandle, sequence: SequenceSpec) {
        self.outcome = Some(Outcome::GivenUp);
        let (outcome, tokens) = rescue.run().await;
        self.metrics.rescued(outcome, tokens);
        self.span.set("baton.rescued_tokens", || tokens as i64);
        match engine.submit(sequence) {
            Ok(events) => self.run(events).await,
            Err(error) => self.refuse(error).await,
        }
    }

    /// The engine does not take it.
    pub(crate) async fn refuse(mut self, error: SubmitError) {
        // Nobody to tell is nobody who wants to know.
        self.outcome = self.fail(error.into()).await.ok();
    }

    async fn pass(&mut self, events: &mut SequenceEvents) -> Result<Outcome, GivenUp> {
        while let Some(event) = events.recv().await {
            let step = match event {
                SequenceEvent::Started { cached_tokens, pages } => {
                    let queue = self.submitted.elapsed();
                    self.metrics.queue.observe(queue.as_secs_f64());
                    self.span.took("queue", queue);
                    self.span.set("baton.cached_tokens", || cached_tokens as i64);
                    self.metrics.cached_tokens.inc_by(cached_tokens as u64);
                    self.metrics.computed_tokens.inc_by(u64::from(self.tokens) - cached_tokens as u64);
                    self.first.started = Some(Instant::now());
                    let source = PageSpan::new(Arc::clone(&self.pool), pages, 0, self.tokens);
                    Progress::Started { cached_tokens: cached_tokens as u32, queue, source: Arc::new(source) }
                }
                SequenceEvent::Computed { layers, tokens } => {
                    if layers.end == self.pool.shape().layers {
                        self.span.mark_with("chunk", "baton.tokens", i64::from(tokens.end));
                    }
                    Progress::Computed { layers, tokens }
                }
                // Nobody asks for it here.
                SequenceEvent::Prompt(_) | SequenceEvent::Embedding(_) => continue,
                SequenceEvent::Token(token) => {
                    self.first.drawn(token);
                    self.tell_sampled().await?;
                    continue;
                }
                SequenceEvent::Finished { choice, .. } => {
                    self.first.ended(choice);
                    self.tell_sampled().await?;
                    continue;
                }
                SequenceEvent::Prefilled => {
                    self.tell_sampled().await?;
                    self.tell(Progress::Done).await?;
                    return Ok(Outcome::Done);
                }
                SequenceEvent::Failed(failure) => return self.fail(failure).await,
            };
            self.tell(step).await?;
        }
        self.fail(Failure::new(ErrorCode::Internal, "the engine stopped")).await
    }

    /// Tells the first tokens once all of them are known.
    async fn tell_sampled(&mut self) -> Result<(), GivenUp> {
        let Some(sampled) = self.first.take() else { return Ok(()) };
        self.span.mark("first token");
        if let Progress::Sampled { prefill, .. } = &sampled {
            self.metrics.prefill.observe(prefill.as_secs_f64());
        }
        self.tell(sampled).await
    }

    async fn fail(&mut self, failure: Failure) -> Result<Outcome, GivenUp> {
        self.span.fail(failure.message.clone());
        self.tell(Progress::Failed(failure)).await?;
        Ok(Outcome::Failed)
    }

    /// Waits for room: a handoff that falls behind holds back this sequence and no other.
    async fn tell(&self, progress: Progress) -> Result<(), GivenUp> {
        self.progress.send(progress).await.map_err(|_| GivenUp)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.outcome.into_iter().for_each(|outcome| self.metrics.end(outcome));
    }
}

// === impl FirstTokens ===

impl FirstTokens {
    pub(crate) fn new(sample: &[u32]) -> Self {
        Self { open: sample.iter().copied().collect(), tokens: Vec::new(), started: None, told: false }
    }

    fn drawn(&mut self, token: Token) {
        if self.open.remove(&token.choice) {
            self.tokens.push(token);
        }
    }

    fn ended(&mut self, choice: u32) {
        self.open.remove(&choice);
    }

    /// The one report, when nothing is open and it was not taken before.
    fn take(&mut self) -> Option<Progress> {
        if !self.open.is_empty() || std::mem::replace(&mut self.told, true) {
            return None;
        }
        let prefill = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        Some(Progress::Sampled { tokens: std::mem::take(&mut self.tokens), prefill })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(choice: u32) -> Token {
        Token { choice, position: 0, id: 7, logprob: None, top: Vec::new() }
    }

    fn choices(report: Option<Progress>) -> Option<Vec<u32>> {
        match report? {
            Progress::Sampled { tokens, .. } => Some(tokens.iter().map(|token| token.choice).collect()),
            _ => None,
        }
    }

    #[test]
    fn first_tokens_are_told_once_and_all_together() {
        let mut first = FirstTokens::new(&[0, 1, 2]);
        first.drawn(token(0));
        first.drawn(token(2));
        assert_eq!(choices(first.take()), None);
        // Choice 1 drew a stop token: it is absent. Choice 0 ended by length after its token.
        first.ended(1);
        first.ended(0);
        assert_eq!(choices(first.take()), Some(vec![0, 2]));
        assert_eq!(choices(first.take()), None);
    }

    #[test]
    fn with_nothing_to_sample_the_report_is_empty() {
        assert_eq!(choices(FirstTokens::new(&[]).take()), Some(Vec::new()));
    }
}
