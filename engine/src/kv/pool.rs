//! The page pool: who holds which page, and how.
//!
//! One mutex, held for a few lines, never while memory is touched or another
//! lock is taken. Three rules:
//! - a page's state follows from its holds and its cache entry, nothing else;
//! - `free + cached >= promised` after every operation, so that a promise can
//!   always be bound (every cached page can be evicted);
//! - the states sum to the pool's size, because each change moves one page
//!   from one count to another.

use std::{collections::HashSet, sync::Arc};

use baton_protocol::{BlockHash, KvShape, PageCounts, PageState, PrefixChanges};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Hold, KvMemory, KvStore, PageId, PageRef, Promise,
    changes::{self, ChangeLog},
    prefix::PrefixTree,
};

/// Sizes of a pool, in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// All of it.
    pub pages: usize,
    /// Most that may be promised and not yet bound.
    pub max_promised: usize,
    /// Beyond this many pages of running prompts for other nodes, the next one waits.
    pub max_prefill: usize,
    /// Beyond this many pages of running answers, the next one waits.
    pub max_decode: usize,
    /// Whether pages are zeroed when they are taken: nobody finds what others left in them.
    pub zeroes: bool,
}

/// All pages of a node, and the prefix cache over them.
pub struct KvPool {
    config: PoolConfig,
    memory: Arc<dyn KvStore>,
    ledger: Mutex<Ledger>,
}

/// What is known of every page.
struct Ledger {
    slots: Vec<Slot>,
    free: Vec<PageId>,
    tree: PrefixTree,
    changes: ChangeLog,
    counts: PageCounts,
}

#[derive(Clone, Default)]
struct Slot {
    /// Number of holds by [`Hold`], weakest first.
    holds: [u32; 4],
    /// Its place in the prefix cache.
    cached_as: Option<BlockHash>,
}

/// The pool's books are wrong: a fault of this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    /// Counts by state differ from the pages' states.
    #[error("pages counted as {counted:?} are {found:?}")]
    Counts {
        /// As kept.
        counted: Box<PageCounts>,
        /// As found page by page.
        found: Box<PageCounts>,
    },
    /// One page's books contradict each other.
    #[error("page {page}: {fault}")]
    Page {
        /// Index of the page.
        page: u32,
        /// What is wrong.
        fault: &'static str,
    },
    /// The prefix tree is not a tree.
    #[error("prefix cache: {0}")]
    Tree(&'static str),
    /// More is promised than could be bound.
    #[error("{promised} pages promised, {bindable} free or evictable")]
    Promised {
        /// Pages promised.
        promised: u64,
        /// Pages free or cached.
        bindable: u64,
    },
}

// === impl KvPool ===

impl KvPool {
    /// A pool of zeroed pages in the machine's memory, all free.
    pub fn new(shape: KvShape, config: PoolConfig) -> Arc<Self> {
        let memory = Arc::new(KvMemory::new(shape, config.pages));
        Self::over(memory, config)
    }

    /// A pool of the pages of `memory`, all free.
    ///
    /// # Panics
    /// When `memory` has fewer pages than `config` says.
    pub fn over(memory: Arc<dyn KvStore>, config: PoolConfig) -> Arc<Self> {
        assert!(memory.pages() >= config.pages, "{} pages of memory for {config:?}", memory.pages());
        let total = config.pages as u64;
        let ledger = Ledger {
            slots: vec![Slot::default(); config.pages],
            free: (0..config.pages as u32).rev().map(PageId).collect(),
            tree: PrefixTree::default(),
            changes: ChangeLog::new(config.pages),
            counts: PageCounts { free: total, total, ..PageCounts::default() },
        };
        Arc::new(Self { config, memory, ledger: Mutex::new(ledger) })
    }

    /// Shape of the pages.
    pub fn shape(&self) -> &KvShape {
        self.memory.shape()
    }

    /// The bytes.
    pub fn memory(&self) -> &dyn KvStore {
        &*self.memory
    }

    /// Its sizes.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Pages by state; they sum to the total at all times.
    pub fn counts(&self) -> PageCounts {
        self.ledger.lock().counts
    }

    /// Holds the pages of the longest cached prefix of a chain, as
    /// [`Hold::Running`]. Shorter when holding more would break a promise.
    pub fn match_prefix(self: &Arc<Self>, hashes: &[BlockHash]) -> Vec<PageRef> {
        let mut ledger = self.ledger.lock();
        let found = ledger.tree.find(hashes);
        let mut pages = Vec::with_capacity(found.len());
        for id in found {
            if ledger.slot(id).state() == PageState::Cached && ledger.unpromised() == 0 {
                break;
            }
            ledger.change(id, |slot| slot.holds[Hold::Running as usize] += 1);
            pages.push(PageRef::counted(self, id, Hold::Running));
        }
        pages
    }

    /// Pages of the longest cached prefix of a chain, none of them held.
    pub fn foresee_prefix(&self, hashes: &[BlockHash]) -> usize {
        self.ledger.lock().tree.reach(hashes)
    }

    /// Takes pages that are nobody's, evicting cached ones if need be; held as
    /// [`Hold::Running`]. All or none: none when promises need them.
    pub fn allocate(self: &Arc<Self>, pages: usize) -> Option<Vec<PageRef>> {
        let ledger = self.ledger.lock();
        if ledger.unpromised() < pages {
            return None;
        }
        Some(self.take(ledger, pages, Hold::Running))
    }

    /// Promises pages to a handoff that has not started yet.
    pub fn promise(self: &Arc<Self>, pages: usize) -> Option<Promise> {
        let mut ledger = self.ledger.lock();
        let within_share = ledger.counts.promised as usize + pages <= self.config.max_promised;
        if !within_share || ledger.unpromised() < pages {
            return None;
        }
        ledger.counts.promised += pages as u64;
        Some(Promise::counted(self, pages))
    }

    /// Makes full pages findable under the chain that names them, page `i`
    /// under hash `i`. A block that is cached in another page already stays there.
    pub fn insert(&self, hashes: &[BlockHash], pages: &[PageRef]) {
        let mut ledger = self.ledger.lock();
        let mut parent = None;
        for (&hash, page) in hashes.iter().zip(pages) {
            let is_elsewhere = ledger.slot(page.id()).cached_as.is_some_and(|known| known != hash);
            debug_assert!(!is_elsewhere, "page {page:?} was written to after it was cached");
            if is_elsewhere {
                return;
            }
            if ledger.tree.insert(parent, hash, page.id()) {
                ledger.change(page.id(), |slot| slot.cached_as = Some(hash));
                ledger.changes.record(hash, true);
            } else if !ledger.tree.contains(&hash) {
                return;
            }
            parent = Some(hash);
        }
    }

    /// Empties the prefix cache; held pages stay held.
    pub fn flush_cache(&self) {
        let mut ledger = self.ledger.lock();
        let left = ledger.tree.clear();
        ledger.uncache(left);
    }

    /// What of the prefix cache has changed after the change of this number.
    /// Only the last changes are remembered, about as many as there are pages:
    /// the answer's `after` is another number when some are missing.
    pub fn prefix_changes(&self, after: u64) -> PrefixChanges {
        let (from, changes) = self.ledger.lock().changes.after(after);
        changes::sum_up(from, &changes)
    }

    /// Everything that the prefix cache holds, blocks before those that follow them.
    pub fn prefix_snapshot(&self) -> PrefixChanges {
        let (number, mut blocks) = {
            let ledger = self.ledger.lock();
            (ledger.changes.number(), ledger.tree.blocks())
        };
        blocks.sort_unstable_by_key(|(depth, _)| *depth);
        let added = blocks.into_iter().map(|(_, hash)| hash).collect();
        PrefixChanges { after: 0, number, added, removed: Vec::new() }
    }

    /// Checks every page against every count.
    ///
    /// # Errors
    /// With the first contradiction found.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        self.ledger.lock().check()
    }

    /// Takes pages out of the prefix cache, with everything behind them: their content is in doubt.
    pub(crate) fn forget(&self, pages: &[PageRef]) {
        let mut ledger = self.ledger.lock();
        for page in pages {
            if let Some(hash) = ledger.slot(page.id()).cached_as {
                let left = ledger.tree.remove(hash);
                ledger.uncache(left);
            }
        }
    }

    /// Whether one sequence alone uses the page and the cache does not: it may be written to.
    pub(crate) fn is_exclusive(&self, page: &PageRef) -> bool {
        let ledger = self.ledger.lock();
        let slot = ledger.slot(page.id());
        slot.cached_as.is_none() && slot.holds[Hold::Running as usize] == 1
    }

    pub(super) fn hold(&self, page: PageId, hold: Hold) {
        self.ledger.lock().change(page, |slot| slot.holds[hold as usize] += 1);
    }

    pub(super) fn let_go(&self, page: PageId, hold: Hold) {
        self.ledger.lock().change(page, |slot| slot.holds[hold as usize] -= 1);
    }

    pub(super) fn bind(self: &Arc<Self>, pages: usize) -> Vec<PageRef> {
        let mut ledger = self.ledger.lock();
        ledger.counts.promised -= pages as u64;
        self.take(ledger, pages, Hold::Receiving)
    }

    pub(super) fn take_back(&self, promised: usize) {
        self.ledger.lock().counts.promised -= promised as u64;
    }

    fn take(self: &Arc<Self>, mut ledger: MutexGuard<'_, Ledger>, pages: usize, hold: Hold) -> Vec<PageRef> {
        while ledger.free.len() < pages {
            let left = ledger.tree.evict();
            assert!(!left.is_empty(), "free + cached pages were counted before they were taken");
            ledger.uncache(left);
        }
        let at = ledger.free.len() - pages;
        let taken = ledger.free.split_off(at);
        for &id in &taken {
            ledger.change(id, |slot| slot.holds[hold as usize] += 1);
        }
        drop(ledger);
        if self.config.zeroes {
            self.memory.zero_pages(&taken);
        }
        taken.into_iter().rev().map(|id| PageRef::counted(self, id, hold)).collect()
    }
}

// === impl Ledger ===

impl Ledger {
    fn slot(&self, page: PageId) -> &Slot {
        &self.slots[page.0 as usize]
    }

    /// Pages that could be taken without breaking a promise.
    fn unpromised(&self) -> usize {
        (self.counts.free + self.counts.cached).saturating_sub(self.counts.promised) as usize
    }

    /// The only way in which a page changes: books every consequence.
    fn change(&mut self, page: PageId, change: impl FnOnce(&mut Slot)) {
        let slot = &mut self.slots[page.0 as usize];
        let before = slot.state();
        change(slot);
        let after = slot.state();
        if before == after {
            return;
        }
        let cached_as = slot.cached_as;
        *count(&mut self.counts, before) -= 1;
        *count(&mut self.counts, after) += 1;
        match (before, after, cached_as) {
            (_, PageState::Free, _) => self.free.push(page),
            (_, PageState::Cached, Some(hash)) => self.tree.let_go(hash),
            (PageState::Cached, _, Some(hash)) => self.tree.pin(hash),
            _ => {}
        }
    }

    /// Books that pages have left the tree.
    fn uncache(&mut self, pages: Vec<PageId>) {
        for page in pages {
            if let Some(hash) = self.slot(page).cached_as {
                self.changes.record(hash, false);
            }
            self.change(page, |slot| slot.cached_as = None);
        }
    }

    fn check(&self) -> Result<(), IntegrityError> {
        let mut found = PageCounts {
            total: self.slots.len() as u64,
            promised: self.counts.promised,
            ..Default::default()
        };
        let in_free: HashSet<PageId> = self.free.iter().copied().collect();
        for (index, slot) in self.slots.iter().enumerate() {
            *count(&mut found, slot.state()) += 1;
            if in_free.contains(&PageId(index as u32)) != (slot.state() == PageState::Free) {
                return Err(IntegrityError::Page {
                    page: index as u32,
                    fault: "the list of free pages is wrong",
                });
            }
        }
        if found != self.counts || !found.sums_to_total() || in_free.len() != self.free.len() {
            return Err(IntegrityError::Counts { counted: Box::new(self.counts), found: Box::new(found) });
        }
        let mut entries = 0;
        for (hash, page, is_idle) in self.tree.entries() {
            entries += 1;
            let slot = self.slot(page);
            if slot.cached_as != Some(hash) {
                return Err(IntegrityError::Page {
                    page: page.0,
                    fault: "the prefix cache names it wrongly",
                });
            }
            if is_idle != (slot.state() == PageState::Cached) {
                return Err(IntegrityError::Page {
                    page: page.0,
                    fault: "idle in the prefix cache and held",
                });
            }
        }
        if entries != self.slots.iter().filter(|slot| slot.cached_as.is_some()).count() {
            return Err(IntegrityError::Tree("a page says that it is cached and is not"));
        }
        if let Some(fault) = self.tree.fault() {
            return Err(IntegrityError::Tree(fault));
        }
        let bindable = self.counts.free + self.counts.cached;
        if self.counts.promised > bindable {
            return Err(IntegrityError::Promised { promised: self.counts.promised, bindable });
        }
        Ok(())
    }
}

fn count(counts: &mut PageCounts, state: PageState) -> &mut u64 {
    match state {
        PageState::Free => &mut counts.free,
        PageState::Cached => &mut counts.cached,
        PageState::Running => &mut counts.running,
        PageState::Receiving => &mut counts.receiving,
        PageState::Sending => &mut counts.sending,
        PageState::Quarantined => &mut counts.quarantined,
    }
}

// === impl Slot ===

impl Slot {
    /// The strongest hold decides, then the cache.
    fn state(&self) -> PageState {
        let strongest = Hold::ALL.into_iter().rev().find(|hold| self.holds[*hold as usize] > 0);
        match strongest {
            Some(Hold::Quarantined) => PageState::Quarantined,
            Some(Hold::Receiving) => PageState::Receiving,
            Some(Hold::Sending) => PageState::Sending,
            Some(Hold::Running) => PageState::Running,
            None if self.cached_as.is_some() => PageState::Cached,
            None => PageState::Free,
        }
    }
}

#[cfg(any(test, fuzzing))]
pub mod model;
#[cfg(test)]
mod tests;
