//! Sets of nodes, each kept once. Blocks of one conversation, and of one
//! system prompt, are on the same few nodes: millions of blocks share some
//! thousand sets, and a block needs no more than a set's number.

use std::{collections::HashMap, sync::Arc};

/// A node's number in the index.
pub(super) type Slot = u32;

/// A set by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetId(u32);

/// All sets that blocks name.
#[derive(Debug)]
pub(super) struct Sets {
    all: Vec<Set>,
    ids: HashMap<Arc<[Slot]>, SetId>,
    unused: Vec<SetId>,
}

#[derive(Clone, Debug)]
struct Set {
    /// In ascending order.
    members: Arc<[Slot]>,
    /// How many blocks name it.
    blocks: u32,
}

// === impl SetId ===

impl SetId {
    /// Nobody.
    pub(super) const NOBODY: Self = Self(0);
}

// === impl Sets ===

impl Default for Sets {
    fn default() -> Self {
        let nobody: Arc<[Slot]> = Arc::new([]);
        Self {
            all: vec![Set { members: Arc::clone(&nobody), blocks: 0 }],
            ids: HashMap::from([(nobody, SetId::NOBODY)]),
            unused: Vec::new(),
        }
    }
}

impl Sets {
    pub(super) fn members(&self, set: SetId) -> &[Slot] {
        &self.all[set.0 as usize].members
    }

    pub(super) fn contains(&self, set: SetId, slot: Slot) -> bool {
        self.members(set).binary_search(&slot).is_ok()
    }

    /// How many sets there are.
    pub(super) fn len(&self) -> usize {
        self.all.len() - self.unused.len()
    }

    /// The set with one member more, for a block to name.
    pub(super) fn with(&mut self, set: SetId, slot: Slot) -> SetId {
        let members = self.members(set);
        let at = members.partition_point(|member| *member < slot);
        let more: Vec<_> = [&members[..at], &[slot], &members[at..]].concat();
        self.named(more)
    }

    /// The set with one member less, for a block to name; nobody is named by none.
    pub(super) fn without(&mut self, set: SetId, slot: Slot) -> SetId {
        let rest: Vec<_> = self.members(set).iter().copied().filter(|member| *member != slot).collect();
        if rest.is_empty() { SetId::NOBODY } else { self.named(rest) }
    }

    /// A block names this set no more.
    pub(super) fn release(&mut self, set: SetId) {
        if set == SetId::NOBODY {
            return;
        }
        let Set { members, blocks } = &mut self.all[set.0 as usize];
        *blocks -= 1;
        if *blocks == 0 {
            let members = std::mem::take(members);
            // After a node has left, two sets can have the same members: one of them is known by them.
            if self.ids.get(&members) == Some(&set) {
                self.ids.remove(&members);
            }
            self.unused.push(set);
        }
    }

    /// Takes a node out of every set. Returns how many blocks nobody holds any more.
    pub(super) fn forget(&mut self, slot: Slot) -> u64 {
        let mut orphans = 0;
        for (index, set) in self.all.iter_mut().enumerate() {
            if set.members.binary_search(&slot).is_err() {
                continue;
            }
            let id = SetId(index as u32);
            if self.ids.get(&set.members) == Some(&id) {
                self.ids.remove(&set.members);
            }
            set.members = set.members.iter().copied().filter(|member| *member != slot).collect();
            if set.members.is_empty() {
                orphans += u64::from(set.blocks);
            } else {
                self.ids.entry(Arc::clone(&set.members)).or_insert(id);
            }
        }
        orphans
    }

    fn named(&mut self, members: Vec<Slot>) -> SetId {
        if let Some(&id) = self.ids.get(members.as_slice()) {
            self.all[id.0 as usize].blocks += 1;
            return id;
        }
        let members: Arc<[Slot]> = members.into();
        let set = Set { members: Arc::clone(&members), blocks: 1 };
        let id = if let Some(id) = self.unused.pop() {
            self.all[id.0 as usize] = set;
            id
        } else {
            self.all.push(set);
            SetId(self.all.len() as u32 - 1)
        };
        self.ids.insert(members, id);
        id
    }
}
