//! Who computes how much in the next step.
//!
//! A sequence knows some tokens and has KV of the first `computed`; a step
//! computes the next few. Generating sequences (one token missing) go first,
//! prompts share what is left of the budget in chunks that end with a page,
//! then waiting ones are let in: first come, first served.
//!
//! Answers whose readers were promised a time between tokens have it kept: see `keeper`.
//!
//! When pages run out the youngest goes back to waiting without its pages and
//! is computed again later. The oldest always goes on, so all end.

mod admission;
mod budget;
mod fit;
mod keeper;
mod pace;
mod steps;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{ErrorCode, Failure, StepModel};

use crate::{
    SchedulerConfig,
    batch::{Batch, BatchSequence},
    guide::{Guides, PATIENCE},
    kv::{KvPool, PageId, PageRef},
    metrics::EngineMetrics,
    sequence::{Sequence, SequenceKey},
};
use budget::Budget;
use keeper::{Going, Keeper};
use pace::Pace;
use steps::Steps;

/// All sequences of an engine.
pub(crate) struct Scheduler {
    config: SchedulerConfig,
    pool: Arc<KvPool>,
    metrics: EngineMetrics,
    running: BTreeMap<SequenceKey, Sequence>,
    waiting: BTreeMap<SequenceKey, Sequence>,
    pace: Pace,
    steps: Steps,
}

/// Prompt tokens of a step for each answer that goes on, at least.
const PROMPT_TOKENS_BESIDE: usize = 4;

/// What the next step computes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<Chunk>,
    /// Planned while a step is under way, which reads and writes the pages of
    /// running sequences: nobody is preempted.
    pub(crate) is_ahead: bool,
    /// Someone would have got pages by preempting.
    pub(crate) is_short: bool,
}

/// New tokens of one running sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: SequenceKey,
    pub(crate) tokens: Range<usize>,
    /// Whether the chunk ends what is known and a token is drawn after it.
    pub(crate) wants_logits: bool,
}

// === impl Scheduler ===

impl Scheduler {
    pub(crate) fn new(config: SchedulerConfig, pool: Arc<KvPool>, metrics: EngineMetrics) -> Self {
        Self {
            config,
            pool,
            metrics,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pace: Pace::default(),
            steps: Steps::default(),
        }
    }

    /// Takes new sequences.
    pub(crate) fn push(&mut self, sequences: impl IntoIterator<Item = Sequence>) {
        for mut sequence in sequences {
            sequence.foresee(&self.pool);
            self.waiting.insert(sequence.key, sequence);
        }
        self.count();
    }

    /// A running sequence.
    pub(crate) fn get(&self, key: SequenceKey) -> Option<&Sequence> {
        self.running.get(&key)
    }

    /// A running sequence, to be changed.
    pub(crate) fn get_mut(&mut self, key: SequenceKey) -> Option<&mut Sequence> {
        self.running.get_mut(&key)
    }

    /// The plan's chunks, each with its sequence.
    pub(crate) fn planned<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Chunk, &'a Sequence)> {
        plan.chunks.iter().filter_map(|chunk| Some((chunk, self.get(chunk.key)?)))
    }

    /// Pages of the plan's sequences, one after the other.
    pub(crate) fn page_ids(&self, plan: &Plan) -> Vec<PageId> {
        self.planned(plan).flat_map(|(_, sequence)| sequence.pages.iter().map(PageRef::id)).collect()
    }

    /// The plan's step as the backend reads it, over its [`page_ids`](Self::page_ids).
    pub(crate) fn batch<'a>(&'a self, plan: &'a Plan, page_ids: &'a [PageId]) -> Batch<'a> {
        let mut rest = page_ids;
        let part = |(chunk, sequence): (&Chunk, &'a Sequence)| {
            let (pages, others) = rest.split_at(sequence.pages.len());
            rest = others;
            let Range { start, end } = chunk.tokens;
            BatchSequence { tokens: &sequence.tokens, start, end, pages, wants_logits: chunk.wants_logits }
        };
        let reads = self.planned(plan).map(|(chunk, sequence)| sequence.read(&chunk.tokens)).collect();
        Batch { reads, ..Batch::new(self.planned(plan).map(part).collect()) }
    }

    /// Takes a running sequence out.
    pub(crate) fn take(&mut self, key: SequenceKey) -> Option<Sequence> {
        self.running.remove(&key)
    }

    /// Puts a sequence back, or what became of it.
    pub(crate) fn run(&mut self, sequence: Sequence) {
        self.running.insert(sequence.key, sequence);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Takes out everything that was cancelled, stopped, failed or is too late.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<Sequence> {
        let mut is_gone = |_: &SequenceKey, sequence: &mut Sequence| {
            if sequence.origin.deadline.is_some_and(|deadline| deadline <= now) {
                sequence.origin.fail(Failure::new(ErrorCode::DeadlineExceeded, "the request's time is over"));
            }
            sequence.origin.is_over() || !sequence.drop_stopped()
        };
        let mut gone: Vec<_> = self.running.extract_if(.., &mut is_gone).collect();
        gone.extend(self.waiting.extract_if(.., &mut is_gone));
        gone.into_iter().map(|(_, sequence)| sequence).collect()
    }

    /// Has masks found for all that are to draw within grammars, and waits a moment for them.
    pub(crate) fn follow_grammars(&mut self, guides: &mut Guides) {
        for sequence in self.guided() {
            sequence.follow_grammar(guides);
        }
        self.look_for_masks(PATIENCE, false);
    }

    /// Takes the masks that come in time. For those that are late already only the patient wait.
    pub(crate) fn look_for_masks(&mut self, wait: Duration, is_patient: bool) {
        let until = Instant::now() + wait;
        for sequence in self.guided() {
            if let Err(failure) = sequence.look_for_mask(until, is_patient) {
                sequence.origin.fail(failure);
            }
        }
    }

    fn guided(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.values_mut().chain(self.waiting.values_mut()).filter(|sequence| sequence.is_guided())
    }

    /// Fails every sequence.
    pub(crate) fn fail_all(&mut self, failure: &Failure) {
        for sequence in self.running.values().chain(self.waiting.values()) {
            sequence.origin.fail(failure.clone());
        }
        self.running.clear();
        self.waiting.clear();
        self.count();
    }

    /// Plans a step, and makes every page that it writes to writable. A plan
    /// that is dropped is made again by the next one. `is_ahead`: while a step is under way.
    pub(crate) fn plan(&mut self, is_ahead: bool) -> Plan {
        let mut plan = Plan { is_ahead, ..Plan::default() };
        self.plan_decodes(&mut plan);
        let going: Vec<_> = self.planned(&plan).map(|(_, sequence)| Going::of(sequence)).collect();
        let mut budget = self.prompt_budget(&going);
        if going.is_empty() {
            budget = self.shared(budget);
        }
        self.plan_prefills(&mut plan, &mut budget);
        self.admit(&mut plan, &mut budget);
        if plan.chunks.is_empty() && self.running.is_empty() && !is_ahead {
            self.release_youngest_waiting();
        }
        self.count();
        plan
    }

    /// Notes how long the plan's step took. Returns what is known of steps now.
    pub(crate) fn learn(&mut self, plan: &Plan, time: Duration) -> StepModel {
        if plan.chunks.iter().any(|chunk| chunk.tokens.len() > 1) {
            self.pace.learn(plan.chunks.iter().map(|chunk| chunk.tokens.len()).sum(), time);
        }
        self.steps.learn(&plan.chunks, time);
        self.steps.model()
    }

    /// Notes that the plan's step begins.
    pub(crate) fn begins(&mut self, plan: &Plan, now: Instant) {
        for chunk in &plan.chunks {
            if let Some(sequence) = self.running.get_mut(&chunk.key) {
                sequence.went_on = now;
            }
        }
    }

    /// What prompts may add to a step in which these answers go on.
    fn prompt_budget(&self, answers: &[Going]) -> Budget {
        let most = Budget::of(self.prompt_share(answers.len()));
        let Some(keeper) = self.keeper() else { return most };
        let (Some(limit), Some(cost)) = (keeper.limit(answers), self.steps.model().prefill) else {
            return most;
        };
        let left = limit / self.steps.late() - cost.base - keeper.beside(answers);
        most.within(left, cost, self.pool.shape().page_tokens as usize)
    }

    /// A budget for all prompts that there are, where no answers go on beside them.
    fn shared(&self, budget: Budget) -> Budget {
        let Some(cost) = self.steps.model().prefill else { return budget };
        let all = self.running.values().chain(self.waiting.values());
        budget.shared(cost, all.filter(|sequence| sequence.remaining() > 1).count())
    }

    /// Prompt tokens of a step in which so many answers go on, whatever they were promised:
    /// their readers shall not wait for a whole prompt of someone else, and prompts shall
    /// come in as fast as answers end.
    fn prompt_share(&self, generating: usize) -> usize {
        let page_tokens = self.pool.shape().page_tokens as usize;
        let most = self.config.max_batch_tokens.saturating_sub(generating).max(page_tokens);
        let limit = Duration::from_millis(self.config.mixed_step_ms);
        if generating == 0 || limit.is_zero() {
            return most;
        }
        let fair = (PROMPT_TOKENS_BESIDE * generating).max(page_tokens);
        self.pace.tokens_within(limit).saturating_sub(generating).clamp(fair.min(most), most)
    }

    /// Publishes how much there is to do.
    pub(crate) fn count(&self) {
        let (mut answers, mut remaining, mut context, mut generating) = (0, 0, 0, Vec::new());
        for sequence in self.running.values() {
            answers += sequence.choices.len().max(1);
            remaining += sequence.remaining().saturating_sub(1);
            if sequence.remaining() == 1 {
                context += sequence.tokens.len();
                generating.push(Going::of(sequence));
            }
        }
        let waiting = self.waiting.values().map(Sequence::foreseen_remaining);
        remaining += waiting.map(|left| left.saturating_sub(1)).sum::<usize>();
        self.metrics.running.set(answers as i64);
        self.metrics.waiting.set(self.waiting.len() as i64);
        self.metrics.waiting_prefill_tokens.set(remaining as i64);
        self.metrics.running_context_tokens.set(context as i64);
        self.metrics.step_prompt_tokens.set(self.prompt_budget(&generating).fits(0) as i64);
    }

    fn plan_decodes(&mut self, plan: &mut Plan) {
        let may_go_on = |sequence: &&Sequence| sequence.remaining() == 1 && sequence.may_go_on();
        let generating: Vec<_> = self.running.values().filter(may_go_on).map(Going::of).collect();
        let all = || generating.iter().map(|answer| answer.key).collect();
        let keys = self.keeper().map_or_else(all, |keeper| keeper.choose(generating.clone()));
        for key in keys {
            self.plan_chunk(plan, key, 1);
        }
    }

    /// Who keeps the times between tokens, once it is known what steps cost.
    fn keeper(&self) -> Option<Keeper> {
        let floor = Duration::from_millis(self.config.least_itl_ms);
        self.steps.model().decode.map(|cost| Keeper { cost, floor })
    }

    /// Whether a waiting sequence lets those that run have their time between tokens.
    fn keeps_budgets(&self, sequence: &Sequence) -> bool {
        let Some(keeper) = self.keeper().filter(|_| !sequence.origin.is_prefill) else { return true };
        let generates = |sequence: &&Sequence| !sequence.origin.is_prefill;
        let answers: Vec<_> = self.running.values().filter(generates).map(Going::of).collect();
        keeper.has_room(&answers, Going::of(sequence))
    }

    fn plan_prefills(&mut self, plan: &mut Plan, budget: &mut Budget) {
        let may_go_on = |sequence: &&Sequence| sequence.remaining() > 1 && sequence.may_go_on();
        let prompts = self.running.values().filter(may_go_on);
        for key in prompts.map(|sequence| sequence.key).collect::<Vec<_>>() {
            self.plan_prompt(plan, key, budget);
        }
    }

    /// Gives a running prompt what the budget has for it.
    fn plan_prompt(&mut self, plan: &mut Plan, key: SequenceKey, budget: &mut Budget) {
        let Some(sequence) = self.running.get(&key) else { return };
        let left = sequence.computed..sequence.tokens.len();
        if !budget.admits(&left) {
            return;
        }
        let used = self.plan_chunk(plan, key, budget.fits(left.start));
        budget.spend(&(left.start..left.start + used));
        if used == left.len() {
            budget.end();
        }
    }

    /// Gives a running sequence up to `budget` tokens. Returns how many it got.
    fn plan_chunk(&mut self, plan: &mut Plan, key: SequenceKey, budget: usize) -> usize {
        let page_tokens = self.pool.shape().page_tokens as usize;
        // It may have been preempted for an older one since the list was made.
        let Some(sequence) = self.running.get(&key) else { return 0 };
        let (start, known) = (sequence.computed, sequence.tokens.len());
        let end = if known - start <= budget { known } else { (start + budget) / page_tokens * page_tokens };
        if end <= start {
            return 0;
        }
        let wants_logits = end == known && sequence.wants_draw();
        if wants_logits && !sequence.may_draw() {
            return 0;
        }
        if !self.make_writable(plan, key, end) {
            return 0;
        }
        plan.chunks.push(Chunk { key, tokens: start..end, wants_logits });
        end - start
    }

    /// Makes pages for a running sequence, preempting younger ones if it must.
    fn make_writable(&mut self, plan: &mut Plan, key: SequenceKey, end: usize) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&key) else { return false };
            if sequence.make_writable(&self.pool, end) {
                return true;
            }
            if plan.is_ahead {
                plan.is_short = true;
                return false;
            }
            let held = sequence.pages.len();
            match self.youngest_holder() {
                Some(youngest) if youngest != key => self.preempt(plan, youngest),
                _ if self.holders() > 1 => self.preempt(plan, key),
                _ if held >= self.pool.config().pages => self.fail_too_large(key),
                // Handoffs hold the rest; they end without this one's help.
                _ => return false,
            }
        }
    }

    /// The youngest sequence whose pages would help another one.
    fn youngest_holder(&self) -> Option<SequenceKey> {
        let helps = |sequence: &&Sequence| !sequence.origin.is_prefill && !sequence.pages.is_empty();
        self.running.values().chain(self.waiting.values()).filter(helps).map(|sequence| sequence.key).max()
    }

    fn holders(&self) -> usize {
        let holds = |sequence: &&Sequence| !sequence.origin.is_prefill && !sequence.pages.is_empty();
        self.running.values().chain(self.waiting.values()).filter(holds).count()
    }

    /// Takes a sequence's pages back; it keeps its tokens and waits in its old place.
    fn preempt(&mut self, plan: &mut Plan, key: SequenceKey) {
        plan.chunks.retain(|chunk| chunk.key != key);
        if let Some(sequence) = self.waiting.get_mut(&key) {
            sequence.release();
        } else if let Some(mut sequence) = self.running.remove(&key) {
            sequence.release();
            self.waiting.insert(key, sequence);
        }
        self.metrics.preemptions.inc();
    }

    fn fail_too_large(&mut self, key: SequenceKey) {
        if let Some(sequence) = self.running.remove(&key) {
            sequence
                .origin
                .fail(Failure::new(ErrorCode::Overloaded, "the request needs more kv pages than there are"));
        }
    }
}

#[cfg(test)]
mod tests;
