//! Which nodes hold which block.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use baton_protocol::BlockHash;

use super::holders::{SetId, Sets, Slot};

/// Blocks and their holders.
#[derive(Debug)]
pub(super) struct Table {
    /// By the first bits of a block's hash, so that no growth moves more than a small part.
    shards: Vec<Shard>,
    sets: Sets,
    /// Blocks in the table that nobody holds, since their last holder has left.
    orphans: u64,
    /// The shard that is swept next while there are orphans.
    sweep: usize,
}

type Shard = HashMap<Key, SetId, BuildHasherDefault<AsItIs>>;

/// Half of a block's hash. Two blocks may be taken for one: that costs a wrong
/// guess, never a wrong answer. Two words, since one of 64 bits would pad an entry to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key([u32; 2]);

/// Keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 10;

// === impl Table ===

impl Default for Table {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { shards, sets: Sets::default(), orphans: 0, sweep: 0 }
    }
}

impl Table {
    /// Who holds a block, as a set.
    pub(super) fn set(&self, block: &BlockHash) -> SetId {
        self.shard(block).get(&Key::of(block)).copied().unwrap_or(SetId::NOBODY)
    }

    /// The nodes of a set.
    pub(super) fn members(&self, set: SetId) -> &[Slot] {
        self.sets.members(set)
    }

    /// Different sets of nodes.
    pub(super) fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Blocks in it, those that nobody holds any more included.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.shards.iter().map(HashMap::len).sum()
    }

    pub(super) fn is_held_by(&self, block: &BlockHash, slot: Slot) -> bool {
        self.sets.contains(self.set(block), slot)
    }

    /// A node holds a block from now on. It did not before.
    pub(super) fn add(&mut self, block: &BlockHash, slot: Slot) {
        let set = self.shards[shard(block)].entry(Key::of(block)).or_insert(SetId::NOBODY);
        let before = *set;
        if before != SetId::NOBODY && self.sets.members(before).is_empty() {
            self.orphans -= 1;
        }
        *set = self.sets.with(before, slot);
        self.sets.release(before);
    }

    /// A node holds a block no more.
    pub(super) fn remove(&mut self, block: &BlockHash, slot: Slot) {
        let Entry::Occupied(mut entry) = self.shards[shard(block)].entry(Key::of(block)) else { return };
        let before = *entry.get();
        let after = self.sets.without(before, slot);
        self.sets.release(before);
        if after == SetId::NOBODY {
            entry.remove();
        } else {
            entry.insert(after);
        }
    }

    /// A node holds nothing any more. What it alone held is swept out later, by [`tidy`](Self::tidy).
    pub(super) fn forget(&mut self, slot: Slot) {
        self.orphans += self.sets.forget(slot);
    }

    /// Sweeps out a small part of what nobody holds.
    pub(super) fn tidy(&mut self) {
        if self.orphans == 0 {
            return;
        }
        let (shard, sets) = (&mut self.shards[self.sweep], &mut self.sets);
        shard.retain(|_, set| {
            let is_held = !sets.members(*set).is_empty();
            if !is_held {
                self.orphans -= 1;
                sets.release(*set);
            }
            is_held
        });
        if shard.len() < shard.capacity() / 4 {
            shard.shrink_to_fit();
        }
        self.sweep = (self.sweep + 1) % SHARDS;
    }

    fn shard(&self, block: &BlockHash) -> &Shard {
        &self.shards[shard(block)]
    }
}

fn shard(block: &BlockHash) -> usize {
    usize::from(u16::from_be_bytes([block.0[0], block.0[1]]) >> (u16::BITS - SHARD_BITS))
}

// === impl Key ===

impl Key {
    fn of(block: &BlockHash) -> Self {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| block.0[at + byte]));
        Self([word(4), word(8)])
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.0[0]) << 32 | u64::from(self.0[1]));
    }
}

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
