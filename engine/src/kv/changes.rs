//! The prefix cache's last changes, numbered, for whoever keeps an index of it.

use std::collections::{HashSet, VecDeque};

use baton_protocol::{BlockHash, PrefixChanges};

/// The last changes. Changes are numbered from 1.
pub(super) struct ChangeLog {
    last: VecDeque<Change>,
    /// Number of the newest.
    number: u64,
    /// Beyond this many, asking for everything costs no more.
    limit: usize,
}

/// A block, and whether the cache holds it since.
pub(super) type Change = (BlockHash, bool);

/// Small pools remember more than they have pages, so that they are not asked for everything all the time.
const LEAST_LIMIT: usize = 1024;

// === impl ChangeLog ===

impl ChangeLog {
    pub(super) fn new(pages: usize) -> Self {
        Self { last: VecDeque::new(), number: 0, limit: pages.max(LEAST_LIMIT) }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn record(&mut self, hash: BlockHash, is_held: bool) {
        if self.last.len() == self.limit {
            self.last.pop_front();
        }
        self.last.push_back((hash, is_held));
        self.number += 1;
    }

    /// The remembered changes after a number, in order, and the number that
    /// they do follow: another one when some are forgotten, or never were.
    pub(super) fn after(&self, number: u64) -> (u64, Vec<Change>) {
        let forgotten = self.number - self.last.len() as u64;
        let from = number.clamp(forgotten, self.number);
        (from, self.last.range((from - forgotten) as usize..).copied().collect())
    }
}

/// What changes after the number `after` come to; blocks before those that follow them.
pub(super) fn sum_up(after: u64, changes: &[Change]) -> PrefixChanges {
    let mut seen = HashSet::with_capacity(changes.len());
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    // The last word on a block counts. A block is added after those before it.
    for (hash, is_held) in changes.iter().rev().filter(|(hash, _)| seen.insert(*hash)) {
        if *is_held { &mut added } else { &mut removed }.push(*hash);
    }
    added.reverse();
    PrefixChanges { after, number: after + changes.len() as u64, added, removed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(byte: u8) -> BlockHash {
        BlockHash([byte; 16])
    }

    fn apply(held: &mut HashSet<BlockHash>, changes: &PrefixChanges) {
        held.retain(|hash| !changes.removed.contains(hash));
        held.extend(&changes.added);
    }

    #[test]
    fn forgotten_changes_are_told_by_the_number_that_the_others_follow() {
        let mut log = ChangeLog::new(0);
        for number in 0..LEAST_LIMIT as u64 + 10 {
            log.record(hash(number as u8), true);
        }
        assert_eq!(log.after(9).0, 10);
        assert_eq!(log.after(10).1.len(), LEAST_LIMIT);
        assert_eq!(log.after(LEAST_LIMIT as u64 + 10), (LEAST_LIMIT as u64 + 10, Vec::new()));
        assert_eq!(log.after(u64::MAX).0, LEAST_LIMIT as u64 + 10, "a number of another life");
    }

    proptest! {
        /// Wherever the stretches are cut, and even if the last is applied twice.
        #[test]
        fn stretches_add_up_to_what_is_held(
            changes in prop::collection::vec((0..6u8, any::<bool>()), 0..60), cut in 0..60usize,
        ) {
            let mut log = ChangeLog::new(0);
            let mut expected = HashSet::new();
            for (byte, is_held) in &changes {
                log.record(hash(*byte), *is_held);
                if *is_held { expected.insert(hash(*byte)); } else { expected.remove(&hash(*byte)); }
            }
            let cut = cut.min(changes.len());
            let (_, all) = log.after(0);
            let mut found = HashSet::new();
            for part in [sum_up(0, &all[..cut]), sum_up(cut as u64, &all[cut..]), sum_up(cut as u64, &all[cut..])] {
                apply(&mut found, &part);
            }
            prop_assert_eq!(found, expected);
        }
    }
}
