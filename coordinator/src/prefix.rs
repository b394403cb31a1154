//! Which nodes hold which pages of KV: the prefix caches of all nodes in one index.
//!
//! - [`PrefixIndex`]: how much of a prompt each node holds
//! - [`Holder`]: one node's part of it; gone when dropped
//! - `table`: holders by block; `holders`: sets of nodes, each kept once
//!
//! A block is named by a chained hash (`protocol::block_hash`), which covers
//! tenant, page size and every token before it. The model is not in it, and
//! need not be: an answer is by node, and a node has one model.
//!
//! Blocks of a chain are held from the front: engines let go of leaves first,
//! and of what hangs below a block with it. So the nodes that hold a block are
//! among those that hold the one before it, and a search between two blocks
//! with the same holders is not needed. Where that does not hold (between the
//! parts of a change, and where a limit kept blocks out), an answer is wrong
//! and no more: nodes match their own caches in the end.

mod holders;
mod table;

use std::sync::Arc;

use baton_protocol::{BlockHash, PrefixChanges};
use parking_lot::RwLock;

use self::{
    holders::{SetId, Slot},
    table::Table,
};

/// How much an index may hold. A page on two nodes counts twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Pages of all nodes.
    pub pages: u64,
    /// Pages of one node.
    pub pages_of_node: u64,
}

/// The prefix caches of all nodes. Look-ups share a lock that changes take for
/// some ten microseconds at a time, or some ten more while what nobody holds is
/// swept out after a node has left.
#[derive(Debug)]
pub struct PrefixIndex {
    limits: PrefixLimits,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// Pages of each node, by slot.
    pages: Vec<u64>,
    /// Slots that no node has.
    unused: Vec<Slot>,
    /// Pages of all nodes.
    total: u64,
}

/// One node's part of an index. Dropping it takes its pages out.
#[derive(Debug)]
pub struct Holder {
    index: Arc<PrefixIndex>,
    slot: Slot,
}

/// How many pages of a prompt each node holds, from its start.
#[derive(Clone, Debug, Default)]
pub struct Held(Vec<u32>);

/// What an index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Pages of all nodes; a page on two nodes counts twice.
    pub pages: u64,
    /// Different sets of nodes that hold some page.
    pub sets: usize,
}

/// Changes made under one hold of the lock.
const CHANGES_AT_ONCE: usize = 32;

// === impl PrefixIndex ===

impl PrefixIndex {
    /// An index of no nodes.
    pub fn new(limits: PrefixLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: RwLock::default() })
    }

    /// A node that holds nothing yet.
    pub fn join(self: &Arc<Self>) -> Holder {
        let mut state = self.state.write();
        let slot = state.unused.pop().unwrap_or_else(|| {
            state.pages.push(0);
            state.pages.len() as Slot - 1
        });
        Holder { index: Arc::clone(self), slot }
    }

    /// How much of a chain of blocks each node holds.
    pub fn held(&self, chain: &[BlockHash]) -> Held {
        let state = self.state.read();
        let mut pages = vec![0; state.pages.len()];
        if let Some(first) = chain.first() {
            let (start, end) = ((0, state.table.set(first)), (chain.len(), SetId::NOBODY));
            state.mark(chain, start, end, &mut pages);
        }
        Held(pages)
    }

    /// What it holds.
    pub fn stats(&self) -> PrefixStats {
        let state = self.state.read();
        PrefixStats { pages: state.total, sets: state.table.sets() - 1 }
    }
}

impl State {
    /// Writes down whose chain ends where, from block `from` on, whose holders
    /// are known, to before block `until`, whose holders are known too.
    fn mark(
        &self,
        chain: &[BlockHash],
        (from, here): (usize, SetId),
        (until, there): (usize, SetId),
        pages: &mut [u32],
    ) {
        if here == there || here == SetId::NOBODY {
            return;
        }
        if until - from == 1 {
            // Those that hold the next block as well are written over by what follows.
            for &slot in self.table.members(here) {
                pages[slot as usize] = until as u32;
            }
            return;
        }
        let middle = from.midpoint(until);
        let between = (middle, self.table.set(&chain[middle]));
        self.mark(chain, (from, here), between, pages);
        self.mark(chain, between, (until, there), pages);
    }

    /// Whether there was room for it.
    fn add(&mut self, block: &BlockHash, slot: Slot, limits: &PrefixLimits) -> bool {
        if self.table.is_held_by(block, slot) {
            return true;
        }
        let own = &mut self.pages[slot as usize];
        if *own >= limits.pages_of_node || self.total >= limits.pages {
            return false;
        }
        *own += 1;
        self.total += 1;
        self.table.add(block, slot);
        true
    }

    fn remove(&mut self, block: &BlockHash, slot: Slot) {
        if self.table.is_held_by(block, slot) {
            self.pages[slot as usize] -= 1;
            self.total -= 1;
            self.table.remove(block, slot);
        }
    }
}

// === impl Holder ===

impl Holder {
    /// Applies changes. Returns how many pages the limits kept out.
    pub fn apply(&self, changes: &PrefixChanges) -> u64 {
        for removed in changes.removed.chunks(CHANGES_AT_ONCE) {
            let mut state = self.index.state.write();
            removed.iter().for_each(|block| state.remove(block, self.slot));
            state.table.tidy();
        }
        let mut kept_out = 0;
        for added in changes.added.chunks(CHANGES_AT_ONCE) {
            let mut state = self.index.state.write();
            let add = |block: &&BlockHash| !state.add(block, self.slot, &self.index.limits);
            kept_out += added.iter().filter(add).count() as u64;
            state.table.tidy();
        }
        kept_out
    }

    /// Its number in the index, while it lives.
    pub(crate) fn slot(&self) -> usize {
        self.slot as usize
    }

    /// Its pages.
    pub fn len(&self) -> u64 {
        self.index.state.read().pages[self.slot as usize]
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all its pages out.
    pub fn clear(&self) {
        let mut state = self.index.state.write();
        state.table.forget(self.slot);
        state.total -= std::mem::take(&mut state.pages[self.slot as usize]);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.clear();
        self.index.state.write().unused.push(self.slot);
    }
}

// === impl Held ===

impl Held {
    /// Slots of those that hold something, most first.
    pub(crate) fn holders(&self) -> Vec<usize> {
        let mut holders: Vec<usize> = (0..self.0.len()).filter(|slot| self.0[*slot] > 0).collect();
        holders.sort_by_key(|slot| std::cmp::Reverse(self.0[*slot]));
        holders
    }

    /// Pages that a node holds.
    pub fn pages(&self, holder: &Holder) -> usize {
        self.0.get(holder.slot as usize).map_or(0, |pages| *pages as usize)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;
#[cfg(test)]
mod tests;
