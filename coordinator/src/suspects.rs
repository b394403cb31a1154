//! Requests whose nodes died while they were there. One of them may be what they
//! died of, and the others happened to be beside it.

use std::{collections::HashMap, sync::Arc};

use baton_protocol::{Incarnation, NodeId, RequestId};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Those in flight that have no token since.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    died: Mutex<HashMap<RequestId, Vec<Life>>>,
    /// Where one at a time is tried.
    ward: Arc<tokio::sync::Mutex<()>>,
}

/// A node from its start to its end.
pub(crate) type Life = (NodeId, Incarnation);

/// Nobody else is tried meanwhile.
pub(crate) type Alone = OwnedMutexGuard<()>;

// === impl Suspects ===

impl Suspects {
    /// This node died with this request.
    pub(crate) fn add(&self, request: RequestId, node: Life) {
        self.died.lock().entry(request).or_default().push(node);
    }

    /// This one is none any more.
    pub(crate) fn clear(&self, request: RequestId) {
        self.died.lock().remove(&request);
    }

    /// Whether another request was on one of its nodes, and whether on all of them.
    pub(crate) fn beside(&self, request: RequestId) -> (bool, bool) {
        let died = self.died.lock();
        let Some(own) = died.get(&request) else { return (false, false) };
        let others = || died.iter().filter(|(other, _)| **other != request).map(|(_, lives)| lives);
        let on_one = others().any(|lives| own.iter().any(|life| lives.contains(life)));
        let on_all = others().any(|lives| own.iter().all(|life| lives.contains(life)));
        (on_one, on_all)
    }

    /// Waits until no other suspect is tried.
    pub(crate) async fn alone(&self) -> Alone {
        Arc::clone(&self.ward).lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_is_known_by_the_nodes_that_died_with_it() {
        let suspects = Suspects::default();
        let [poison, beside, later] = [1, 2, 3].map(RequestId);
        let life = |name: &str, incarnation| (NodeId::from(name), Incarnation(incarnation));
        suspects.add(poison, life("p", 1));
        assert_eq!(suspects.beside(poison), (false, false));
        suspects.add(beside, life("p", 1));
        suspects.add(poison, life("q", 1));
        assert_eq!((suspects.beside(poison), suspects.beside(beside)), ((true, false), (true, true)));
        suspects.add(beside, life("q", 1));
        assert_eq!(suspects.beside(poison), (true, true));
        // Another life of a node is another node.
        suspects.add(later, life("p", 2));
        assert_eq!(suspects.beside(later), (false, false));
        suspects.clear(beside);
        assert_eq!(suspects.beside(poison), (false, false));
    }

    #[tokio::test]
    async fn suspects_are_tried_one_at_a_time() {
        let suspects = Suspects::default();
        let alone = suspects.alone().await;
        let mut second = std::pin::pin!(suspects.alone());
        assert!(futures::poll!(&mut second).is_pending());
        drop(alone);
        second.await;
    }
}
