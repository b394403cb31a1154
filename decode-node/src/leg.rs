//! One PREFILL within an attempt: memory first, then the prefill node, then its pages.

use std::sync::Arc;

use baton_engine::kv::PageRef;
use baton_kv_transfer::{Handoff, HandoffEvent, HandoffStats, KvPeer};
use baton_protocol::{Bill, ErrorCode, Failure, FinishReason, Token, wire::GenerateUp};
use baton_traces::Span;
use futures::Stream;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    attempt::Attempt,
    caller::End,
    landing::{Landed, PromisedPages},
    metrics::LegOutcome,
    open::Learnt,
    room::Room,
};

/// What came of asking one prefill node.
pub(crate) enum Leg {
    /// KV of all tokens is in these pages; behind them, pages to grow into.
    Ready(Vec<PageRef>),
    /// It was not asked: there is no memory here for what it would send.
    NoRoom,
    /// It is not, or not all of it. What was complete is in the prefix cache.
    Broken {
        /// Whether the prefill node had taken it, and had not computed it.
        was_computing: bool,
        /// Whether it had begun.
        has_begun: bool,
        /// `Overloaded` when it had no room.
        reason: Failure,
    },
}

/// What a handoff has here.
struct Passage {
    /// Pages of `[0, have)`, from this node's prefix cache.
    held: Vec<PageRef>,
    /// Pages of `[have, tokens)`, and those to grow into.
    landed: Landed,
    /// Choices whose next token the handoff brings.
    sample: Vec<u32>,
    /// Whether the prefill node has said that it has it, and has not computed it.
    was_computing: bool,
    begun: Option<Instant>,
    span: Span,
}

impl<S: Stream<Item = Result<GenerateUp, Status>> + Unpin> Attempt<S> {
    /// Asks one prefill node for the pages that are not here, and takes them.
    pub(crate) async fn handoff(&mut self, leg: u32, peer: &KvPeer) -> Result<Leg, End> {
        let node = Arc::clone(&self.node);
        let Some(Room { held, promise }) = self.caller.during(node.room(&self.opened)).await? else {
            node.metrics.leg(LegOutcome::NoRoom);
            return Ok(Leg::NoRoom);
        };
        let have = (held.len() * node.page_tokens()) as u32;
        let tokens = have..self.opened.tokens.len() as u32;
        let (landing, landed) = PromisedPages::new(Arc::clone(node.engine.pool()), promise, tokens);
        let sample = self.to_sample();
        let mut span = Span::part("handoff", &self.span.parent());
        span.set("baton.prefill_node", || peer.node.to_string());
        let mut ask = self.opened.ask(leg, have, sample.clone());
        ask.request.trace = span.parent();
        // What a broken leg has left here need not be computed once more.
        ask.holder = (have > 0 && (self.has_kept || self.opened.attempt > 0)).then(|| node.sessions.holder());
        let asked = node.sessions.handoff(peer, ask, Box::new(landing));
        let handoff = match self.caller.during(asked).await? {
            Ok(handoff) => handoff,
            Err(error) => {
                span.fail(error.to_string());
                node.metrics.leg(LegOutcome::Refused);
                return Ok(Leg::Broken { was_computing: false, has_begun: false, reason: error.into() });
            }
        };
        self.caller.bill =
            Bill { cached_tokens: have, prefill_node: Some(peer.node.clone()), ..Bill::default() };
        self.follow(handoff, Passage { held, landed, sample, was_computing: false, begun: None, span }).await
    }

    /// Takes what comes, until it is all here or nothing more comes.
    async fn follow(&mut self, mut handoff: Handoff, mut passage: Passage) -> Result<Leg, End> {
        loop {
            match self.caller.during(handoff.next()).await? {
                Some(HandoffEvent::Queued { .. }) => passage.was_computing = true,
                Some(HandoffEvent::Started { cached_tokens, queue }) => {
                    passage.was_computing = true;
                    passage.begun = Some(Instant::now());
                    let bill = &mut self.caller.bill;
                    bill.queue = queue;
                    bill.cached_tokens = bill.cached_tokens.max(cached_tokens);
                    let (node, cached_tokens) = (bill.prefill_node.clone(), bill.cached_tokens);
                    self.caller.computing(node, cached_tokens).await?;
                }
                Some(HandoffEvent::First(tokens)) => {
                    passage.span.mark("first token");
                    passage.was_computing = false;
                    self.caller.bill.prefill = passage.begun.map(|begun| begun.elapsed()).unwrap_or_default();
                    if let Err(end) = self.first(&tokens, &passage.sample).await {
                        if matches!(end, End::Answered) {
                            handoff.decline();
                        }
                        return Err(end);
                    }
                }
                Some(HandoffEvent::Ready { stats, .. }) => {
                    return Ok(Leg::Ready(self.adopt(passage, &stats)));
                }
                Some(HandoffEvent::Lost { complete_tokens, reason, .. }) => {
                    return Ok(self.keep(passage, complete_tokens, reason));
                }
                None => {
                    let reason = Failure::new(ErrorCode::PeerLost, "the handoff ended without an outcome");
                    return Ok(self.keep(passage, 0, reason));
                }
            }
        }
    }

    /// Passes the first tokens on. A sampled choice that is absent drew a stop
    /// token: it ends here.
    async fn first(&mut self, tokens: &[Token], sample: &[u32]) -> Result<(), End> {
        for &choice in sample {
            let Some(token) = tokens.iter().find(|token| token.choice == choice) else {
                self.caller.finish(choice, FinishReason::Stop).await?;
                continue;
            };
            let learnt = self.opened.learn(token);
            if learnt == Learnt::Misplaced {
                let message = format!("the prefill node's token of choice {choice} is not its next one");
                return Err(Failure::new(ErrorCode::PeerLost, message).into());
            }
            self.caller.token(token.clone()).await?;
            if learnt == Learnt::Full {
                self.caller.finish(choice, FinishReason::Length).await?;
            }
        }
        Ok(())
    }

    /// Every frame is in and right: the pages become a sequence's.
    fn adopt(&mut self, mut passage: Passage, stats: &HandoffStats) -> Vec<PageRef> {
        passage.span.took("frames", stats.transfer);
        passage.span.set("baton.transfer_bytes", || i64::try_from(stats.bytes).unwrap_or(i64::MAX));
        passage.span.set("baton.exposed_ms", || stats.exposed.as_secs_f64() * 1e3);
        let prompt_pages = self.node.engine.pool().shape().pages_for(self.opened.tokens.len());
        let bill = &mut self.caller.bill;
        bill.prefill = stats.prefill;
        bill.transfer = stats.transfer;
        bill.exposed = stats.exposed;
        bill.transfer_bytes = stats.bytes;
        bill.transfer_pages = (prompt_pages - passage.held.len()) as u32;
        bill.repaired_frames = stats.repaired_frames;
        self.node.metrics.leg(LegOutcome::Ready);
        self.node.metrics.received(stats);
        [passage.held, passage.landed.running(usize::MAX)].concat()
    }

    /// Keeps what is whole, in the prefix cache.
    fn keep(&mut self, mut passage: Passage, complete_tokens: u32, reason: Failure) -> Leg {
        passage.span.fail(reason.message.clone());
        let complete = complete_tokens as usize / self.node.page_tokens();
        if complete > passage.held.len() {
            let received = passage.landed.running(complete - passage.held.len());
            let pages = [passage.held.as_slice(), &received].concat();
            self.node.engine.pool().insert(&self.opened.hashes[..pages.len()], &pages);
            self.has_kept = true;
        }
        let has_begun = passage.begun.is_some();
        self.node.metrics.leg(if has_begun { LegOutcome::Lost } else { LegOutcome::Refused });
        Leg::Broken { was_computing: passage.was_computing, has_begun, reason }
    }
}
