//! Who is let in, and with which pages.

use baton_protocol::PageCounts;

use super::{Plan, Scheduler, budget::Budget};
use crate::{
    SequenceEvent,
    kv::{Hold, PageRef},
    sequence::Sequence,
};

impl Scheduler {
    /// Lets waiting sequences in, oldest first. Once one has to wait for pages,
    /// only those that have theirs already pass it.
    pub(super) fn admit(&mut self, plan: &mut Plan, budget: &mut Budget) {
        let (mut is_short, mut is_prefill_full, mut is_decode_full) = (false, false, false);
        let mut running: usize = self.running.values().map(|sequence| sequence.choices.len().max(1)).sum();
        let keys: Vec<_> = self.waiting.keys().copied().collect();
        for key in keys {
            let Some(sequence) = self.waiting.get(&key) else { continue };
            let places = sequence.choices.len().max(1);
            if budget.fits(0) == 0 || (running > 0 && running + places > self.config.max_sequences) {
                return;
            }
            if !sequence.origin.has_room() {
                continue;
            }
            if !self.keeps_budgets(sequence) {
                return;
            }
            let has_pages = !sequence.pages.is_empty();
            let quota = if sequence.origin.is_prefill { &mut is_prefill_full } else { &mut is_decode_full };
            *quota |= !has_pages && self.exceeds_quota(sequence);
            if (*quota || is_short) && !has_pages {
                continue;
            }
            let Some(mut sequence) = self.waiting.remove(&key) else { continue };
            if !self.reserve(&mut sequence) {
                is_short = true;
                self.waiting.insert(key, sequence);
                continue;
            }
            if !self.start(&mut sequence) {
                continue;
            }
            running += places;
            let is_decode = sequence.remaining() == 1;
            if sequence.remaining() == 0 {
                self.part(sequence);
                continue;
            }
            self.running.insert(key, sequence);
            if is_decode {
                self.plan_chunk(plan, key, 1);
            } else {
                self.plan_prompt(plan, key, budget);
            }
        }
    }

    fn exceeds_quota(&self, sequence: &Sequence) -> bool {
        let PageCounts { sending, running, .. } = self.pool.counts();
        let needed = self.pool.shape().pages_for(sequence.tokens.len()) as u64;
        let config = self.pool.config();
        let (used, quota) = if sequence.origin.is_prefill {
            (sending, config.max_prefill)
        } else {
            (running, config.max_decode)
        };
        used > 0 && used + needed > quota as u64
    }

    /// Reserves the pages of all known tokens, and of one more where one
    /// follows, so that it does not come back at once. All or nothing.
    fn reserve(&self, sequence: &mut Sequence) -> bool {
        let is_cold = sequence.pages.is_empty();
        let queried = if is_cold { sequence.match_prefix(&self.pool) } else { 0 };
        let known = sequence.tokens.len();
        let tokens = if sequence.origin.is_prefill { known } else { known + 1 };
        let pages = self.pool.shape().pages_for(tokens).min(self.pool.config().pages);
        let Some(more) = self.pool.allocate(pages.saturating_sub(sequence.pages.len())) else {
            if is_cold {
                sequence.release();
            }
            return false;
        };
        sequence.pages.extend(more);
        if is_cold {
            self.metrics.prefix_cache_queries.inc_by(queried as u64);
            self.metrics.prefix_cache_hits.inc_by(sequence.computed as u64);
        }
        true
    }

    /// Tells a sequence's receiver that it has started, once. False when it has nothing to do.
    fn start(&self, sequence: &mut Sequence) -> bool {
        if std::mem::replace(&mut sequence.is_started, true) {
            return true;
        }
        let is_prefill = sequence.origin.is_prefill;
        let hold = |page: &PageRef| page.held_as(Hold::Sending);
        let pages = if is_prefill { sequence.pages.iter().map(hold).collect() } else { Vec::new() };
        let cached = sequence.computed;
        sequence.origin.emit(SequenceEvent::Started { cached_tokens: cached, pages });
        if is_prefill && cached > 0 {
            let layers = 0..self.pool.shape().layers;
            sequence.origin.emit(SequenceEvent::Computed { layers, tokens: 0..cached as u32 });
        }
        sequence.end_complete()
    }

    /// Everything common is there and every choice knows how it goes on.
    fn part(&mut self, sequence: Sequence) {
        let mut left = Some(sequence);
        while let Some(sequence) = left {
            let (mut one, rest) = sequence.part(self.pool.shape());
            one.replay();
            self.running.insert(one.key, one);
            left = rest;
        }
    }

    /// Nothing runs and nothing can start: those that wait with pages may be
    /// waiting for each other's. A single one waits for handoffs, which end.
    pub(super) fn release_youngest_waiting(&mut self) {
        if self.holders() > 1
            && let Some(key) = self.youngest_holder()
        {
            self.preempt(&mut Plan::default(), key);
        }
    }
}
