//! A node's prefix cache: blocks by their chained hashes, the longest unused let go first, leaves
//! before what they hang on.

use std::collections::{HashMap, VecDeque};

use baton_protocol::{BlockHash, PrefixChanges};

#[derive(Debug, Default)]
pub(super) struct Cache {
    /// When each was used last.
    used: HashMap<BlockHash, u64>,
    /// By when they were used; entries that `used` knows better are stale.
    order: VecDeque<(BlockHash, u64)>,
    uses: u64,
    /// Added or removed since it was last told.
    changed: Vec<BlockHash>,
}

// === impl Cache ===

impl Cache {
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    /// Blocks of a chain that it holds, from the front; they count as used.
    pub(super) fn matched(&mut self, chain: &[BlockHash]) -> usize {
        let held = chain.iter().take_while(|block| self.used.contains_key(*block)).count();
        self.touch(&chain[..held]);
        held
    }

    /// Takes in a chain; holds no more than so many blocks then.
    pub(super) fn insert(&mut self, chain: &[BlockHash], most: usize) {
        self.changed.extend(chain.iter().filter(|block| !self.used.contains_key(*block)));
        self.touch(chain);
        self.shrink(most);
    }

    /// Lets go of blocks until it holds no more than so many.
    pub(super) fn shrink(&mut self, most: usize) {
        while self.used.len() > most {
            let Some((block, used)) = self.order.pop_front() else { return };
            if self.used.get(&block) == Some(&used) {
                self.used.remove(&block);
                self.changed.push(block);
            }
        }
    }

    /// What has changed since this was last asked; none: nothing.
    pub(super) fn changes(&mut self) -> Option<PrefixChanges> {
        if self.changed.is_empty() {
            return None;
        }
        let changed = std::mem::take(&mut self.changed);
        let (added, removed) = changed.into_iter().partition(|block| self.used.contains_key(block));
        Some(PrefixChanges { added, removed, ..PrefixChanges::default() })
    }

    fn touch(&mut self, chain: &[BlockHash]) {
        // The last of a chain goes first.
        for block in chain.iter().rev() {
            self.uses += 1;
            self.used.insert(*block, self.uses);
            self.order.push_back((*block, self.uses));
        }
        // Stale entries are dropped before they outnumber the others.
        if self.order.len() > 2 * self.used.len() + 64 {
            self.order.retain(|(block, used)| self.used.get(block) == Some(used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(of: std::ops::Range<u8>) -> Vec<BlockHash> {
        of.map(|byte| BlockHash([byte; 16])).collect()
    }

    #[test]
    fn leaves_of_what_is_longest_unused_go_first() {
        let mut cache = Cache::default();
        let (one, other) = (blocks(0..4), blocks(10..14));
        cache.insert(&one, 8);
        cache.insert(&other, 8);
        assert_eq!(cache.matched(&one), 4);
        cache.shrink(6);
        assert_eq!((cache.matched(&one), cache.matched(&other)), (4, 2));
        cache.insert(&blocks(20..26), 6);
        assert_eq!((cache.len(), cache.matched(&one), cache.matched(&other)), (6, 0, 0));
    }

    #[test]
    fn changes_name_a_block_by_what_it_is_in_the_end() {
        let mut cache = Cache::default();
        cache.insert(&blocks(0..4), 8);
        cache.shrink(3);
        let changes = cache.changes().unwrap();
        let gone = BlockHash([3; 16]);
        assert_eq!(changes.added, blocks(0..3));
        assert!(changes.removed.iter().all(|block| *block == gone) && !changes.removed.is_empty());
        assert!(cache.changes().is_none());
        for _ in 0..100 {
            cache.matched(&blocks(0..3));
        }
        assert!(cache.order.len() < 200);
    }
}
