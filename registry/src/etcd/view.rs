//! What is known of the members from lists and events, without I/O.

use std::collections::BTreeMap;

use baton_protocol::{NodeId, NodeInfo};

use crate::Members;

/// Longest value that is read as a node's entry.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Members with the revision of each entry.
///
/// Events are hints: one that is not newer than what is known of its key is
/// dropped, so duplicates and a store that repeats old history do no harm. A
/// list is linearizable and therefore always right, even when its revision is
/// lower than before, as after a restore of the store from a backup.
#[derive(Debug, Default)]
pub(super) struct View {
    members: Members,
    /// Revision of the last write or delete seen of a key; lists forget deleted ones.
    seen: BTreeMap<String, i64>,
    /// Everything up to this revision is known.
    revision: i64,
    bad_values: u64,
}

/// One key of a list or event; no value means deleted.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// The key without its prefix: a node's name.
    pub(super) name: &'a str,
    pub(super) value: Option<&'a [u8]>,
    pub(super) revision: i64,
}

impl View {
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn bad_values(&self) -> u64 {
        self.bad_values
    }

    /// Replaces what is known by a full list, deletions included.
    pub(super) fn list<'a>(&mut self, revision: i64, entries: impl IntoIterator<Item = Entry<'a>>) {
        if revision < self.revision {
            tracing::warn!(
                revision,
                known = self.revision,
                "the store went back, it was restored or replaced"
            );
            self.seen.clear();
        }
        let mut members = std::mem::take(&mut self.members);
        let seen = std::mem::take(&mut self.seen);
        for entry in entries {
            let name = entry.name.to_owned();
            let known = members.remove(&NodeId(name.clone()));
            // A value read before is not read, or counted as bad, again.
            let info = if seen.get(&name) == Some(&entry.revision) { None } else { self.read(&entry) };
            self.seen.insert(name.clone(), entry.revision);
            if let Some(info) = info.or(known) {
                self.members.insert(NodeId(name), info);
            }
        }
        self.revision = revision;
    }

    /// Applies one event of a watch.
    pub(super) fn apply(&mut self, entry: &Entry<'_>) {
        let known = self.seen.get(entry.name).copied().unwrap_or(self.revision);
        if entry.revision <= known {
            return;
        }
        let id = NodeId(entry.name.to_owned());
        self.seen.insert(entry.name.to_owned(), entry.revision);
        if entry.value.is_none() {
            self.members.remove(&id);
        } else if let Some(info) = self.read(entry) {
            // A broken value does not take away the node that was there.
            self.members.insert(id, info);
        }
    }

    /// All events up to `revision` have been applied (several keys may share one).
    pub(super) fn advance(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    fn read(&mut self, entry: &Entry<'_>) -> Option<NodeInfo> {
        let value = entry.value.filter(|value| value.len() <= MAX_VALUE_BYTES);
        let info = value.and_then(|value| serde_json::from_slice::<NodeInfo>(value).ok());
        let info = info.filter(|info| info.id.0 == entry.name);
        if info.is_none() {
            self.bad_values += 1;
            tracing::warn!(key = entry.name, "skipped an entry that is no node of this name");
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::etcd::tests::node;

    fn json(name: &str, incarnation: u64) -> Vec<u8> {
        serde_json::to_vec(&node(name, incarnation)).unwrap()
    }

    fn put<'a>(name: &'a str, value: &'a [u8], revision: i64) -> Entry<'a> {
        Entry { name, value: Some(value), revision }
    }

    fn delete(name: &str, revision: i64) -> Entry<'_> {
        Entry { name, value: None, revision }
    }

    #[test]
    fn a_bad_value_is_counted_once_and_keeps_the_node() {
        let mut view = View::default();
        view.list(5, [put("a", &json("a", 1), 5)]);
        view.apply(&put("a", b"{", 6));
        view.apply(&put("b", &json("c", 1), 7));
        view.apply(&put("d", &vec![b' '; MAX_VALUE_BYTES + 1], 8));
        assert_eq!(view.bad_values(), 3);
        assert_eq!(view.members().keys().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["a"]);
        view.list(9, [put("a", b"{", 6)]);
        assert_eq!((view.bad_values(), view.members().len()), (3, 1));
    }

    #[test]
    fn old_events_are_dropped_and_lists_delete() {
        let mut view = View::default();
        view.list(10, [put("a", &json("a", 1), 10)]);
        view.apply(&delete("a", 9));
        view.apply(&put("a", &json("a", 7), 10));
        assert_eq!(view.members()[&"a".into()], node("a", 1));
        view.list(12, []);
        assert!(view.members().is_empty());
        view.apply(&put("a", &json("a", 1), 11));
        assert!(view.members().is_empty(), "an event older than the list came back");
    }

    #[test]
    fn a_restored_store_is_believed() {
        let mut view = View::default();
        view.list(100, [put("a", &json("a", 1), 90)]);
        view.list(3, [put("b", &json("b", 1), 2)]);
        assert_eq!(view.revision(), 3);
        assert_eq!(view.members().keys().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["b"]);
        view.apply(&put("a", &json("a", 2), 4));
        assert_eq!(view.members().len(), 2);
    }

    proptest! {
        /// Events with repeats of old ones lead where the history leads, and
        /// so does a list at any point.
        #[test]
        fn repeats_change_nothing(
            history in prop::collection::vec((0usize..4, prop::option::of(0u64..9)), 1..40),
            repeats in prop::collection::vec((0usize..40, 0usize..40), 0..40),
        ) {
            let names = ["a", "b", "c", "d"];
            let mut expected = Members::new();
            let mut view = View::default();
            let mut applied = Vec::new();
            for (index, (name, incarnation)) in history.iter().enumerate() {
                let (name, revision) = (names[*name], index as i64 + 1);
                let value = incarnation.map(|incarnation| json(name, incarnation));
                match incarnation {
                    Some(incarnation) => { expected.insert(name.into(), node(name, *incarnation)); }
                    None => { expected.remove(&NodeId::from(name)); }
                }
                applied.push((name, value, revision));
                let (name, value, revision) = applied.last().unwrap();
                view.apply(&Entry { name, value: value.as_deref(), revision: *revision });
                view.advance(*revision);
                for (_, old) in repeats.iter().filter(|(at, old)| *at == index && *old < applied.len()) {
                    let (name, value, revision) = &applied[*old];
                    view.apply(&Entry { name, value: value.as_deref(), revision: *revision });
                }
                prop_assert_eq!(view.members(), &expected);
            }
        }
    }
}
