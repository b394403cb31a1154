//! A node that is made up: steps of continuous batching, pages and a prefix cache, by a machine's
//! figures. It knows no clock; who drives it says when steps end.

mod answers;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use baton_coordinator::{Ledger, Load, Sent, prefix::Holder, router::Seen};
use baton_protocol::{NodeInfo, PageCounts, Role, StepCost, StepModel, wire::KvPath};
use tokio::time::Instant;

pub(super) use self::answers::Answer;
use super::{Machine, cache::Cache};

/// What the coordinator sees of a node.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) number: usize,
    pub(super) info: RefCell<Arc<NodeInfo>>,
    pub(super) load: Cell<Load>,
    pub(super) ledger: RefCell<Ledger>,
    pub(super) holder: Holder,
    pub(super) roads: Arc<[KvPath]>,
    pub(super) is_up: Cell<bool>,
}

/// A prompt on its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt {
    pub(super) attempt: u64,
    /// Tokens that need no more computing.
    pub(super) computed: usize,
    pub(super) end: usize,
    /// Pages to reserve when it starts.
    pub(super) pages: usize,
    pub(super) whose: Whose,
    /// Tokens of the step under way.
    chunk: usize,
    begun: bool,
}

/// Where the answer to a prompt goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// On another node.
    Others,
    /// Here, where its pages are reserved.
    Own,
    /// Here, where it was preempted: what it has said is computed again.
    Preempted,
}

/// What came of a step, by attempt.
#[derive(Debug, Default)]
pub(super) struct Stepped {
    /// Answers that got a token.
    pub(super) tokens: Vec<u64>,
    /// Prompts that have run.
    pub(super) prompts: Vec<Prompt>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) shown: Rc<Shown>,
    pub(super) machine: Rc<Machine>,
    pub(super) cache: Cache,
    /// Times as long as its machine's steps take.
    slow: f64,
    /// Counts its lives: what was to happen in an earlier one does not.
    pub(super) life: u32,
    /// Answers whose pages have no room yet.
    pub(super) pending: VecDeque<u64>,
    /// Pages that are reserved.
    pub(super) used: usize,
    /// Seconds from the start at which the last transfer from here, and to here, ends.
    pub(super) busy_until: (f64, f64),
    /// Seconds of its steps.
    pub(super) worked: f64,
    /// Answers whose pages were taken for others.
    pub(super) preempted: u64,
    /// Its roles when it starts.
    configured: BTreeSet<Role>,
    waiting: VecDeque<Prompt>,
    prompts: Vec<Prompt>,
    joining: VecDeque<Answer>,
    answers: Vec<Answer>,
    context: usize,
    is_stepping: bool,
    has_news: bool,
}

/// Share of a pool for prompts of other nodes; a single one may exceed it. As in the scheduler.
const PREFILL_SHARE: f64 = 0.75;

// === impl Shown ===

impl Shown {
    /// Gives it these roles, and takes others away.
    fn set_roles(&self, roles: BTreeSet<Role>) {
        let mut info = self.info.borrow_mut();
        let epoch = info.epoch + 1;
        *info = Arc::new(NodeInfo { roles, epoch, ..NodeInfo::clone(&info) });
    }

    pub(super) fn takes(&self, role: Role) -> bool {
        self.is_up.get() && self.info.borrow().roles.contains(&role)
    }
}

impl Seen for Shown {
    fn info(&self) -> Arc<NodeInfo> {
        Arc::clone(&self.info.borrow())
    }

    fn load(&self) -> Load {
        self.load.get()
    }

    fn sent(&self, now: Instant) -> Sent {
        self.ledger.borrow().sent(now)
    }

    fn roads(&self) -> Arc<[KvPath]> {
        Arc::clone(&self.roads)
    }

    fn prefixes(&self) -> &Holder {
        &self.holder
    }
}

// === impl Prompt ===

impl Prompt {
    /// To be computed for another node, once so many pages are free.
    pub(super) fn of_others(attempt: u64, tokens: std::ops::Range<usize>, pages: usize) -> Self {
        Self {
            attempt,
            computed: tokens.start,
            end: tokens.end,
            pages,
            whose: Whose::Others,
            chunk: 0,
            begun: false,
        }
    }

    /// To be computed where its answer goes on.
    pub(super) fn own(attempt: u64, tokens: std::ops::Range<usize>) -> Self {
        Self { whose: Whose::Own, ..Self::of_others(attempt, tokens, 0) }
    }
}

// === impl Node ===

impl Node {
    pub(super) fn new(shown: Rc<Shown>, machine: Rc<Machine>) -> Self {
        let configured = shown.info.borrow().roles.clone();
        Self {
            shown,
            machine,
            configured,
            cache: Cache::default(),
            slow: 1.0,
            life: 0,
            pending: VecDeque::new(),
            used: 0,
            busy_until: (0.0, 0.0),
            worked: 0.0,
            preempted: 0,
            waiting: VecDeque::new(),
            prompts: Vec::new(),
            joining: VecDeque::new(),
            answers: Vec::new(),
            context: 0,
            is_stepping: false,
            has_news: true,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.shown.is_up.get()
    }

    /// Everything on it is gone.
    pub(super) fn die(&mut self) {
        let shown = Rc::clone(&self.shown);
        shown.is_up.set(false);
        shown.load.set(Load::default());
        shown.holder.clear();
        let (life, slow, worked, preempted) = (self.life + 1, self.slow, self.worked, self.preempted);
        let configured = std::mem::take(&mut self.configured);
        let empty = Self::new(shown, Rc::clone(&self.machine));
        *self = Self { life, slow, worked, preempted, configured, ..empty };
    }

    /// It is back, with the roles of its configuration.
    pub(super) fn rise(&mut self) {
        self.shown.set_roles(self.configured.clone());
        self.shown.is_up.set(true);
        self.has_news = true;
    }

    /// It has this role alone from now on. What it has of others it finishes.
    pub(super) fn take_role(&mut self, role: Role) {
        self.shown.set_roles([role].into());
        self.has_news = true;
    }

    /// Its steps take so many times as long from now on.
    pub(super) fn slow_down(&mut self, times: f64) {
        self.slow = times;
        self.has_news = true;
    }

    /// Reserves pages for an answer, all or nothing; whoever was preempted is before it. One that
    /// needs more than there are gets all.
    pub(super) fn reserve(&mut self, pages: usize) -> bool {
        let is_next = self.waiting.front().is_none_or(|first| first.whose != Whose::Preempted);
        let fits = is_next && (self.used + pages <= self.machine.limits.pages || self.used == 0);
        if fits {
            self.used += pages;
            self.make_room();
        }
        fits
    }

    pub(super) fn release(&mut self, pages: usize) {
        self.used -= pages;
        self.has_news = true;
    }

    fn make_room(&mut self) {
        self.cache.shrink(self.machine.limits.pages.saturating_sub(self.used));
        self.has_news = true;
    }

    /// Pages that the cache may hold now.
    pub(super) fn room(&self) -> usize {
        self.machine.limits.pages.saturating_sub(self.used)
    }

    pub(super) fn push(&mut self, prompt: Prompt) {
        self.waiting.push_back(prompt);
        self.has_news = true;
    }

    /// Plans a step, if none is under way and there is something to do. Returns its seconds;
    /// `begun` is told whose prompts begin with it.
    pub(super) fn begin(&mut self, begun: &mut Vec<u64>) -> Option<f64> {
        if self.is_stepping || !self.is_up() {
            return None;
        }
        self.let_join();
        self.grow();
        let mut budget = self.machine.prompt_share(self.answers.len());
        self.let_in(budget);
        let (mut tokens, mut contexts) = (0, 0.0);
        let page = self.machine.kv.page_tokens as usize;
        for prompt in &mut self.prompts {
            let left = prompt.end - prompt.computed;
            let whole = (prompt.computed + budget) / page * page;
            prompt.chunk = if left <= budget { left } else { whole.saturating_sub(prompt.computed) };
            budget -= prompt.chunk;
            tokens += prompt.chunk;
            contexts += prompt.chunk as f64 * (prompt.computed as f64 + prompt.chunk as f64 / 2.0);
            if prompt.chunk > 0 && !std::mem::replace(&mut prompt.begun, true) {
                begun.push(prompt.attempt);
            }
        }
        if tokens == 0 && self.answers.is_empty() {
            return None;
        }
        let answers = (self.answers.len() as f64, self.context as f64);
        let seconds = self.slow * self.machine.step((tokens as f64, contexts), answers);
        self.is_stepping = true;
        self.has_news = true;
        self.worked += seconds;
        Some(seconds)
    }

    /// Lets waiting prompts in while there is a budget, places and pages, oldest first. Once one
    /// has to wait for pages, only those that have theirs pass it.
    fn let_in(&mut self, budget: usize) {
        let running = self.prompts.iter().map(|prompt| prompt.end - prompt.computed).sum();
        let mut left = budget.saturating_sub(running);
        let total = self.machine.limits.pages;
        let of_others = (PREFILL_SHARE * total as f64) as usize;
        let (mut at, mut is_short) = (0, false);
        while left > 0
            && self.prompts.len() + self.answers.len() < self.machine.limits.max_sequences
            && let Some(next) = self.waiting.get(at).copied()
        {
            let quota = if next.whose == Whose::Others { of_others } else { total };
            is_short |= next.pages > 0 && self.used > 0 && self.used + next.pages > quota;
            if is_short && next.pages > 0 {
                at += 1;
                continue;
            }
            self.waiting.remove(at);
            self.used += next.pages;
            self.make_room();
            left = left.saturating_sub(next.end - next.computed);
            self.prompts.push(next);
        }
    }

    /// The step is over.
    pub(super) fn end(&mut self, stepped: &mut Stepped) {
        self.is_stepping = false;
        stepped.tokens.clear();
        stepped.prompts.clear();
        self.answer(&mut stepped.tokens);
        self.prompts.retain_mut(|prompt| {
            prompt.computed += std::mem::take(&mut prompt.chunk);
            if prompt.computed == prompt.end {
                stepped.prompts.push(*prompt);
            }
            prompt.computed < prompt.end
        });
    }

    /// Tells the coordinator how it is, if anything has changed. `now`: as ledgers have it.
    pub(super) fn report(&mut self, now: Instant) {
        if !std::mem::take(&mut self.has_news) || !self.is_up() {
            return;
        }
        let lacking = |prompt: &Prompt| (prompt.end - prompt.computed) as u64;
        let total = self.machine.limits.pages;
        let (running, cached) = (self.used.min(total) as u64, self.cache.len() as u64);
        self.shown.load.set(Load {
            running: (self.answers.len() + self.prompts.len()) as u32,
            waiting: (self.waiting.len() + self.joining.len()) as u32,
            waiting_prefill_tokens: self.waiting.iter().chain(&self.prompts).map(lacking).sum(),
            running_context_tokens: self.context as u64,
            step_prompt_tokens: self.machine.prompt_share(self.answers.len()) as u64,
            steps: self.steps(),
            left_over: self.left_over() as u32,
            pages: PageCounts {
                free: (total as u64).saturating_sub(running + cached),
                cached,
                running,
                total: total as u64,
                ..PageCounts::default()
            },
            sent: self.shown.ledger.borrow().sent(now),
            ..Load::default()
        });
        if let Some(changes) = self.cache.changes() {
            self.shown.holder.apply(&changes);
        }
    }

    /// What its steps cost, slow as it is. It finds that out at once.
    fn steps(&self) -> StepModel {
        let slow = |cost: StepCost| StepCost {
            base: self.slow * cost.base,
            unit: self.slow * cost.unit,
            context: self.slow * cost.context,
        };
        let StepModel { prefill, decode } = self.machine.steps();
        StepModel { prefill: prefill.map(slow), decode: decode.map(slow) }
    }

    /// Sequences of a role that it no longer has.
    fn left_over(&self) -> usize {
        let info = self.shown.info.borrow();
        let prompts = |are_own: bool| {
            let all = self.waiting.iter().chain(&self.prompts);
            all.filter(|prompt| (prompt.whose != Whose::Others) == are_own).count()
        };
        let answers = || self.answers.len() + self.joining.len() + self.pending.len() + prompts(true);
        let has = |role| info.roles.contains(&role);
        (if has(Role::Prefill) { 0 } else { prompts(false) }) + if has(Role::Decode) { 0 } else { answers() }
    }

    /// Whether nothing is on it.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.used == 0
            && self.waiting.is_empty()
            && self.prompts.is_empty()
            && self.joining.is_empty()
            && self.answers.is_empty()
            && self.pending.is_empty()
            && self.context == 0
            && !self.is_stepping
    }
}
