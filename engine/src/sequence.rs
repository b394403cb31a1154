//! The running form of a request: known tokens, and how far their KV is computed.
//!
//! A request starts as one sequence. Its choices stay together until the
//! common tokens are computed, then each becomes a sequence of its own over
//! the same pages; whoever writes to a shared page copies it first.

pub(crate) mod events;
pub(crate) mod spec;
mod unread;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use baton_protocol::{
    BlockHash, ErrorCode, Failure, FinishReason, KvShape, PromptPart, RequestId, Sampling, Stop, block_hash,
};
use events::{Outbox, SequenceEvent};
use spec::{ChoiceSpec, SequenceSpec, StartFrom};
use unread::Unread;

use crate::{
    batch::{Read, Reading},
    guide::{Guide, Guides, Ready},
    kv::{Hold, KvPool, PageRef},
};

/// Order of arrival, then choice (0 while choices are together). The smallest goes first, the greatest is preempted first.
pub(crate) type SequenceKey = (u64, u32);

/// What all choices of a request share.
pub(crate) struct Origin {
    pub(crate) request: RequestId,
    pub(crate) prompt_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Stop,
    pub(crate) logprobs: bool,
    pub(crate) top_logprobs: u32,
    pub(crate) is_prefill: bool,
    pub(crate) is_embedding: bool,
    pub(crate) deadline: Option<Instant>,
    /// Its readers' time between tokens.
    pub(crate) itl: Option<Duration>,
    /// Known tokens at which a choice ends, by its own limit or the context's.
    pub(crate) end_tokens: usize,
    chain_root: BlockHash,
    outbox: Outbox,
    /// Failed: what is left of it goes without a further word.
    is_over: AtomicBool,
}

/// Known tokens, and the pages that hold KV of the first `computed`.
pub(crate) struct Sequence {
    pub(crate) key: SequenceKey,
    pub(crate) origin: Arc<Origin>,
    /// Who goes on after `tokens`: several until they part.
    pub(crate) choices: VecDeque<ChoiceSpec>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) computed: usize,
    /// Page `i` holds tokens `i * page_tokens ..`.
    pub(crate) pages: Vec<PageRef>,
    /// Whether `Started` was emitted.
    pub(crate) is_started: bool,
    /// When the step began in which it last went on; at first, when it came.
    pub(crate) went_on: Instant,
    /// What is still to be read of the prompt.
    unread: Option<Unread>,
    /// Where it stands in the request's grammar; none before that was looked at.
    guide: Option<Guide>,
    /// Hashes of the full pages of `tokens`, as far as they were needed.
    hashes: Vec<BlockHash>,
    /// Leading pages that the prefix cache was told of.
    offered_pages: usize,
    /// Tokens that the prefix cache had when it came.
    foreseen: usize,
}

// === impl Origin ===

impl Origin {
    pub(crate) fn new(spec: &SequenceSpec, context_tokens: usize, outbox: Outbox) -> Self {
        Self {
            request: spec.request,
            prompt_tokens: spec.prompt_tokens,
            sampling: spec.sampling.clone(),
            stop: spec.stop.clone(),
            logprobs: spec.logprobs,
            top_logprobs: spec.top_logprobs,
            is_prefill: spec.goal.is_prefill(),
            is_embedding: spec.goal.pooling().is_some(),
            deadline: spec.deadline,
            itl: spec.itl,
            end_tokens: context_tokens.min(spec.prompt_tokens + spec.stop.max_tokens as usize),
            chain_root: block_hash::root(&spec.tenant),
            outbox,
            is_over: AtomicBool::new(false),
        }
    }

    /// Whether choices go on after the known tokens.
    pub(crate) fn is_answered(&self) -> bool {
        !self.is_prefill && !self.is_embedding
    }

    pub(crate) fn emit(&self, event: SequenceEvent) {
        if !self.outbox.send(event) {
            // A gap in an answer would be worse than its end.
            debug_assert!(false, "no room for an event of request {}", self.request);
            tracing::error!(request = %self.request, "no room for an event: the request ends");
            self.is_over.store(true, Relaxed);
        }
    }

    /// Tells the failure once; sequences of this request are swept away.
    pub(crate) fn fail(&self, failure: Failure) {
        if !self.is_over.swap(true, Relaxed) {
            self.emit(SequenceEvent::Failed(failure));
        }
    }

    /// Whether nothing more of it is to be computed.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed) || self.outbox.is_closed()
    }

    /// Whether all events of the next step have a place.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }
}

// === impl Sequence ===

impl Sequence {
    pub(crate) fn new(arrival: u64, spec: SequenceSpec, origin: Arc<Origin>) -> Self {
        let unread = Unread::of(&spec);
        let choices = spec.goal.choices();
        let choices =
            choices.map(|(choice, known)| ChoiceSpec { choice, generated: known.to_vec() }).collect();
        let (pages, adopted) = match spec.start {
            StartFrom::Cold => (Vec::new(), 0),
            StartFrom::Adopted { pages, tokens } => {
                (pages.into_iter().map(|page| page.into_hold(Hold::Running)).collect(), tokens)
            }
        };
        let mut sequence = Self {
            key: (arrival, 0),
            origin,
            choices,
            tokens: spec.tokens.to_vec(),
            computed: adopted,
            pages,
            is_started: false,
            went_on: Instant::now(),
            unread,
            guide: None,
            hashes: Vec::new(),
            offered_pages: 0,
            foreseen: 0,
        };
        if let [only] = sequence.choices.make_contiguous() {
            sequence.tokens.append(&mut only.generated);
            sequence.key.1 = only.choice + 1;
        }
        if sequence.wants_draw() {
            // The last row's logits are needed, so the last row is computed again.
            sequence.computed = adopted.min(sequence.tokens.len() - 1);
        }
        sequence
    }

    /// Known tokens whose KV is not computed.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether a token is drawn once all known ones are computed.
    pub(crate) fn wants_draw(&self) -> bool {
        self.choices.iter().any(|choice| choice.generated.is_empty())
    }

    /// Tokens after the prompt.
    pub(crate) fn output_tokens(&self) -> usize {
        self.tokens.len() - self.origin.prompt_tokens
    }

    /// What is read of a chunk.
    pub(crate) fn read(&self, chunk: &Range<usize>) -> Option<Read> {
        self.unread.as_ref()?.of_chunk(chunk, self.origin.prompt_tokens)
    }

    /// Takes what was read, once: computed again, it is not read again. False if it ends, since
    /// something else was read than was asked, or nothing.
    pub(crate) fn take_in(&mut self, read: &Read, reading: Option<Reading>) -> bool {
        match (&mut self.unread, reading) {
            (Some(unread @ Unread::Rows { .. }), Some(Reading::Sum(more))) => {
                unread.add(read.rows.end, &more);
            }
            (Some(Unread::Tokens(_)), Some(Reading::Tokens(tokens))) => {
                self.unread = Unread::tokens_behind(read, self.origin.prompt_tokens);
                let first = read.rows.start as u32 + 1;
                self.origin.emit(SequenceEvent::Prompt(PromptPart { first, tokens }));
            }
            _ => {
                self.origin.fail(Failure::new(ErrorCode::Internal, "the model's rows were not read"));
                return false;
            }
        }
        true
    }

    /// Tells the vector that its rows come to.
    pub(crate) fn embed(&mut self) {
        match self.unread.take().and_then(Unread::into_vector) {
            Some(vector) => self.origin.emit(SequenceEvent::Embedding(vector)),
            None => {
                self.origin.fail(Failure::new(ErrorCode::Internal, "the model returned no usable rows"));
            }
        }
    }

    /// Has the next mask found, if the request has a grammar and a token is to be drawn.
    pub(crate) fn follow_grammar(&mut self, guides: &mut Guides) {
        let Some(grammar) = &self.origin.sampling.grammar else { return };
        let answer = &self.tokens[self.origin.prompt_tokens..];
        let is_behind = match &self.guide {
            None => true,
            Some(Guide::Ready(ready)) => ready.answer_tokens < answer.len(),
            Some(Guide::Coming { .. }) => false,
        };
        if is_behind && self.wants_draw() {
            let ready = self.guide.take().and_then(Guide::into_ready);
            self.guide = Some(guides.follow(ready, grammar, answer));
        }
    }

    /// Takes the mask if it comes until then.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn look_for_mask(&mut self, until: Instant, is_patient: bool) -> Result<(), Failure> {
        self.guide.as_mut().map_or(Ok(()), |guide| guide.look(until, is_patient))
    }

    /// Whether its next token may be drawn: by its grammar, if it has one.
    pub(crate) fn may_draw(&self) -> bool {
        self.origin.sampling.grammar.is_none() || self.mask().is_some()
    }

    /// Whether it has a grammar.
    pub(crate) fn is_guided(&self) -> bool {
        self.origin.sampling.grammar.is_some()
    }

    /// What its grammar allows next.
    pub(crate) fn mask(&self) -> Option<&Arc<[u32]>> {
        let ready = self.ready()?;
        (ready.answer_tokens == self.output_tokens()).then_some(&ready.mask)
    }

    fn ready(&self) -> Option<&Ready> {
        self.guide.as_ref()?.ready()
    }

    /// Whether it is a single choice's, under that choice's key.
    pub(crate) fn has_parted(&self) -> bool {
        self.key.1 > 0
    }

    /// Whether its next tokens may be computed: there is room for what comes
    /// of them, and the last one, which may be pending, does not end it.
    pub(crate) fn may_go_on(&self) -> bool {
        let ends = self.origin.is_answered() && self.tokens.len() >= self.origin.end_tokens;
        !ends && self.origin.has_room()
    }

    /// Leaves out the choices that the receiver stopped. False when nothing is left to do.
    pub(crate) fn drop_stopped(&mut self) -> bool {
        if self.origin.outbox.has_stops() {
            self.choices.retain(|choice| !self.origin.outbox.is_stopped(choice.choice));
        }
        !self.origin.is_answered() || !self.choices.is_empty()
    }

    /// Ends the choices that know all their tokens already. False when nothing is left to do.
    pub(crate) fn end_complete(&mut self) -> bool {
        let (origin, common) = (&self.origin, self.tokens.len());
        if !origin.is_answered() {
            return true;
        }
        self.choices.retain(|choice| {
            let is_complete = common + choice.generated.len() >= origin.end_tokens;
            if is_complete {
                origin.emit(SequenceEvent::Finished { choice: choice.choice, reason: FinishReason::Length });
            }
            !is_complete
        });
        !self.choices.is_empty()
    }

    /// Looks at what the prefix cache has of it, before it takes it.
    pub(crate) fn foresee(&mut self, pool: &KvPool) {
        let page_tokens = pool.shape().page_tokens as usize;
        let full = self.shareable(page_tokens);
        self.foreseen = pool.foresee_prefix(&self.hashes[..full]) * page_tokens;
    }

    /// Tokens that will have to be computed, as far as can be foreseen.
    pub(crate) fn foreseen_remaining(&self) -> usize {
        self.tokens.len() - if self.pages.is_empty() { self.foreseen } else { self.computed }
    }

    /// Takes what the prefix cache has of the known tokens. Returns how many tokens were looked for.
    pub(crate) fn match_prefix(&mut self, pool: &Arc<KvPool>) -> usize {
        let page_tokens = pool.shape().page_tokens as usize;
        let full = self.shareable(page_tokens);
        self.pages = pool.match_prefix(&self.hashes[..full]);
        self.computed = self.pages.len() * page_tokens;
        self.offered_pages = self.pages.len();
        full * page_tokens
    }

    /// Full pages that the prefix cache may have, and their hashes: the last token is always computed,
    /// and so are the rows that are to be read.
    fn shareable(&mut self, page_tokens: usize) -> usize {
        let unread = self.unread.as_ref().map_or(usize::MAX, Unread::next_row);
        let full = (self.tokens.len() - 1).min(unread) / page_tokens;
        self.hash_pages(full, page_tokens);
        full
    }

    /// Gives all pages back; everything will be computed again.
    pub(crate) fn release(&mut self) {
        self.pages.clear();
        self.computed = 0;
        self.offered_pages = 0;
    }

    /// Makes pages for tokens up to `end`, and the first page to be written
    /// this sequence's own. False when the pool has no page for that now.
    pub(crate) fn make_writable(&mut self, pool: &Arc<KvPool>, end: usize) -> bool {
        let shape = pool.shape();
        let missing = shape.pages_for(end).saturating_sub(self.pages.len());
        if missing > 0 {
            let Some(pages) = pool.allocate(missing) else { return false };
            self.pages.extend(pages);
        }
        let first = self.computed / shape.page_tokens as usize;
        if !pool.is_exclusive(&self.pages[first]) {
            let Some(copy) = pool.allocate(1).and_then(|mut pages| pages.pop()) else { return false };
            pool.memory().copy_page(self.pages[first].id(), copy.id());
            self.pages[first] = copy;
        }
        true
    }

    /// Books that KV up to `end` is computed, and lets the prefix cache know of full pages.
    pub(crate) fn computed_to(&mut self, end: usize, pool: &KvPool) {
        self.computed = end;
        self.offer(end, pool);
    }

    /// Lets the prefix cache know of full pages of the first `end` tokens, whose KV is in memory.
    pub(crate) fn offer(&mut self, end: usize, pool: &KvPool) {
        let full = end / pool.shape().page_tokens as usize;
        if full > self.offered_pages {
            self.hash_pages(full, pool.shape().page_tokens as usize);
            pool.insert(&self.hashes[..full], &self.pages[..full]);
            self.offered_pages = full;
        }
    }

    /// The next choice as a sequence of its own: over the same pages while
    /// others are left, with these very pages when it is the last.
    pub(crate) fn part(mut self, shape: &KvShape) -> (Self, Option<Self>) {
        let choice = self.choices.pop_front().expect("a sequence goes on for some choice");
        let rest = (!self.choices.is_empty()).then(|| {
            let pages = self.pages[..shape.pages_for(self.computed)].to_vec();
            Self {
                key: self.key,
                origin: Arc::clone(&self.origin),
                choices: std::mem::take(&mut self.choices),
                tokens: self.tokens.clone(),
                computed: self.computed,
                pages,
                is_started: self.is_started,
                went_on: self.went_on,
                unread: None,
                guide: self.ready().cloned().map(Guide::Ready),
                hashes: self.hashes.clone(),
                offered_pages: self.offered_pages,
                foreseen: self.foreseen,
            }
        });
        self.key.1 = choice.choice + 1;
        self.choices.push_back(choice);
        (self, rest)
    }

    /// Takes up what a single choice knows beyond the common tokens. False when it knows nothing.
    pub(crate) fn replay(&mut self) -> bool {
        let known = std::mem::take(&mut self.choices[0].generated);
        self.tokens.extend_from_slice(&known);
        !known.is_empty()
    }

    fn hash_pages(&mut self, pages: usize, page_tokens: usize) {
        for index in self.hashes.len()..pages {
            let parent = self.hashes.last().unwrap_or(&self.origin.chain_root);
            let block = &self.tokens[index * page_tokens..(index + 1) * page_tokens];
            self.hashes.push(block_hash::next(parent, block));
        }
    }
}
