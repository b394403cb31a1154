//! One attempt of one request, from its opening to its last token.

use std::{convert::Infallible, sync::Arc, time::Duration};

use baton_engine::{ChoiceSpec, Goal, SequenceEvent, SequenceSpec, StartFrom, kv::PageRef};
use baton_protocol::{ErrorCode, Event, Failure, FinishReason, HandoffId, NodeId, wire::GenerateUp};
use baton_traces::Span;
use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::{
    Node,
    caller::{Caller, End},
    leg::Leg,
    open::{Opened, Resumed},
};

/// A request's run on this node. Dropping it cancels whatever it has begun:
/// the handoff, the sequence, the promises.
pub(crate) struct Attempt<S> {
    pub(crate) node: Arc<Node>,
    pub(crate) opened: Opened,
    pub(crate) caller: Caller<S>,
    pub(crate) span: Span,
    /// Who prefilled.
    prefilled_by: Option<NodeId>,
    /// Whether a broken leg left KV here, which the next prefill node may have.
    pub(crate) has_kept: bool,
    /// Tokens that the engine drew, of a request with one choice.
    drawn: Vec<u32>,
}

/// Why the prefill nodes did not do it: busy ones before broken ones.
#[derive(Default)]
struct Refusals(Option<Failure>);

// === impl Attempt ===

impl<S: Stream<Item = Result<GenerateUp, Status>> + Unpin> Attempt<S> {
    pub(crate) fn new(node: Arc<Node>, opened: Opened, says: S, events: mpsc::Sender<Event>) -> Self {
        let caller = Caller::new(says, events, opened.choices.iter().map(Resumed::known));
        let span = Span::part("generate", &opened.request.trace);
        Self { node, opened, caller, span, prefilled_by: None, has_kept: false, drawn: Vec::new() }
    }

    /// Runs until every choice has ended.
    ///
    /// # Errors
    /// What the caller has yet to be told; nothing else is told after it.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        match timeout_at(self.opened.deadline, self.answer()).await {
            Ok(Err(End::Answered)) => {
                self.hand_back();
                Ok(())
            }
            Ok(Err(End::Failed(failure))) => {
                self.span.fail(failure.message.clone());
                Err(failure)
            }
            Err(_) => {
                self.span.fail("the request's time is up");
                Err(Failure::new(ErrorCode::DeadlineExceeded, "the request's time is up"))
            }
        }
    }

    async fn answer(&mut self) -> Result<Infallible, End> {
        self.accept().await?;
        let pages = self.prefill().await?;
        self.generate(pages).await
    }

    /// Takes the attempt, and tells the ends that the last attempt could not tell.
    async fn accept(&mut self) -> Result<(), End> {
        let cached = self.node.cached(&self.opened).len() * self.node.page_tokens();
        self.caller.accept(cached.min(self.opened.request.tokens.len()) as u32).await?;
        for choice in self.opened.full() {
            self.caller.finish(choice, FinishReason::Length).await?;
        }
        if self.opened.going_on().next().is_none() { Err(End::Answered) } else { Ok(()) }
    }

    /// Asks one prefill node after the other, best first; none is left over
    /// means that this node prefills. Complete pages of a broken leg are in the
    /// prefix cache, so the next leg or the local prefill begins behind them.
    async fn prefill(&mut self) -> Result<Option<Vec<PageRef>>, End> {
        let mut candidates = std::mem::take(&mut self.opened.candidates);
        if self.opened.request.reads_prompt() {
            // What is read comes from the rows of a prompt, which only who computes it has.
            candidates.clear();
        }
        let mut refusals = Refusals::default();
        let mut lost = 0;
        for (leg, peer) in (0u32..).zip(&candidates) {
            match self.handoff(leg, peer).await? {
                Leg::Ready(pages) => {
                    self.prefilled_by = Some(peer.node.clone());
                    return Ok(Some(pages));
                }
                // Another prefill node would not find more room here.
                Leg::NoRoom => {
                    refusals.add(Failure::new(ErrorCode::Overloaded, "no memory on the decode node"));
                    break;
                }
                Leg::Broken { was_computing, has_begun, reason } => {
                    tracing::info!(request = %self.opened.request.id, node = %peer.node, %reason, "no prefill");
                    if was_computing && reason.code == ErrorCode::PeerLost {
                        self.caller.broke_off(peer.node.clone()).await?;
                        lost += 1;
                    }
                    if lost == self.opened.may_lose {
                        return Err(End::Failed(reason));
                    }
                    refusals.add(reason);
                    if has_begun && self.is_almost_done() {
                        break;
                    }
                }
            }
        }
        // No candidates: the coordinator wants the prompt prefilled here.
        if candidates.is_empty() || self.node.config.allow_local {
            self.node.metrics.local_prefill();
            return Ok(None);
        }
        Err(End::Failed(refusals.into_failure(self.node.config.retry_after())))
    }

    /// After a break: whether the rest is cheaper to compute than to ask for.
    fn is_almost_done(&self) -> bool {
        let cached = self.node.cached(&self.opened).len() * self.node.page_tokens();
        let rest = self.opened.tokens.len() - cached;
        self.node.config.allow_local && rest < self.node.config.local_finish_below_tokens
    }

    /// Generates until every choice has ended, on the pages of a handoff or from nothing.
    async fn generate(&mut self, pages: Option<Vec<PageRef>>) -> Result<Infallible, End> {
        let is_local = pages.is_none();
        let submitted = Instant::now();
        // Ends with the first token, where another begins.
        let mut span = Span::part(if is_local { "prefill" } else { "decode" }, &self.span.parent());
        if !is_local {
            self.caller.decodes();
        }
        let mut events = self.node.engine.submit(self.sequence(pages)).map_err(Failure::from)?;
        loop {
            tokio::select! {
                biased;
                choice = self.caller.stopped() => {
                    let choice = choice?;
                    if !self.caller.has_finished(choice) {
                        events.stop_choice(choice);
                        self.caller.finish(choice, FinishReason::Stop).await?;
                    }
                }
                event = events.recv() => {
                    let Some(event) = event else {
                        return Err(Failure::new(ErrorCode::Internal, "the engine stopped").into());
                    };
                    if is_local {
                        self.caller.bill_local(&event, submitted.elapsed());
                    }
                    match event {
                        SequenceEvent::Prompt(part) => self.caller.prompt(&part).await?,
                        SequenceEvent::Embedding(vector) => self.caller.embedding(vector).await?,
                        SequenceEvent::Token(token) => {
                            if is_local && self.drawn.is_empty() {
                                span = Span::part("decode", &self.span.parent());
                            }
                            self.drawn.push(token.id);
                            self.caller.token(token).await?;
                        }
                        SequenceEvent::Finished { choice, reason } => self.caller.finish(choice, reason).await?,
                        SequenceEvent::Failed(failure) => {
                            span.fail(failure.message.clone());
                            return Err(failure.into());
                        }
                        SequenceEvent::Started { cached_tokens, .. } if is_local => {
                            self.caller.computing(None, cached_tokens as u32).await?;
                        }
                        SequenceEvent::Started { .. } | SequenceEvent::Computed { .. } | SequenceEvent::Prefilled => {}
                    }
                }
            }
        }
    }

    fn sequence(&self, pages: Option<Vec<PageRef>>) -> SequenceSpec {
        let opened = &self.opened;
        let tokens = opened.tokens.len();
        let start = pages.map_or(StartFrom::Cold, |pages| StartFrom::Adopted { pages, tokens });
        let choices = opened.going_on().filter(|(choice, _)| !self.caller.has_finished(*choice));
        let choices = choices.map(|(choice, rest)| ChoiceSpec { choice, generated: rest.to_vec() }).collect();
        SequenceSpec {
            request: opened.request.id,
            tenant: opened.request.tenant.clone(),
            tokens: Arc::clone(&opened.tokens),
            prompt_tokens: opened.request.tokens.len(),
            sampling: opened.request.sampling.clone(),
            stop: opened.request.stop.clone(),
            logprobs: opened.request.logprobs,
            top_logprobs: opened.request.top_logprobs,
            prompt_logprobs: opened.request.prompt_logprobs,
            goal: opened
                .request
                .embedding
                .map_or(Goal::Generate { choices }, |pooling| Goal::Embed { pooling }),
            start,
            deadline: Some(opened.deadline.into_std()),
            itl: opened.itl,
        }
    }

    /// Offers the KV of prompt and answer to whoever prefilled, for the next
    /// turn. Which of several choices a conversation goes on with is not known.
    fn hand_back(&self) {
        let (Some(peer), [resumed]) = (&self.prefilled_by, self.opened.choices.as_slice()) else { return };
        let tokens = [&self.opened.tokens, resumed.rest(), &self.drawn].concat();
        // The last token was drawn and not computed; of the others, full pages are cached.
        let page_tokens = self.node.page_tokens();
        let cached = (tokens.len() - 1) / page_tokens * page_tokens;
        if cached > 0 {
            let id =
                HandoffId { request: self.opened.request.id, attempt: self.opened.attempt, leg: u32::MAX };
            let tenant = self.opened.request.tenant.clone();
            self.node.sessions.hand_back(peer, id, tenant, tokens[..cached].to_vec());
        }
    }

    /// Choices of which no token beyond the common ones is known.
    pub(crate) fn to_sample(&self) -> Vec<u32> {
        let goes_on = |(choice, rest): &(u32, &[u32])| rest.is_empty() && !self.caller.has_finished(*choice);
        self.opened.going_on().filter(goes_on).map(|(choice, _)| choice).collect()
    }
}

// === impl Refusals ===

impl Refusals {
    fn add(&mut self, reason: Failure) {
        let is_busy = |failure: &Failure| failure.code == ErrorCode::Overloaded;
        self.0 = Some(match self.0.take() {
            Some(before) if is_busy(&before) && is_busy(&reason) => {
                let soonest = before.retry_after.into_iter().chain(reason.retry_after).min();
                Failure { retry_after: soonest, ..reason }
            }
            Some(before) if is_busy(&before) => before,
            _ => reason,
        });
    }

    fn into_failure(self, retry_after: Duration) -> Failure {
        let mut failure =
            self.0.unwrap_or_else(|| Failure::new(ErrorCode::Unavailable, "no prefill node was asked"));
        if failure.code.is_retryable() {
            failure.retry_after.get_or_insert(retry_after);
        }
        failure
    }
}
