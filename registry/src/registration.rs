//! A node's entry, held.

use std::{sync::Arc, time::Duration};

use baton_protocol::{Incarnation, NodeId, NodeInfo};
use tokio::sync::watch;

use crate::Members;

/// Announces a node for as long as it lives.
///
/// `wanted` is what this process wants announced, `published` what others can
/// see; the registry brings the second to the first.
#[derive(Debug)]
pub struct Registration {
    id: NodeId,
    incarnation: Incarnation,
    wanted: Arc<watch::Sender<Members>>,
    published: watch::Receiver<Members>,
}

impl Registration {
    /// Announces by `wanted`, of which a registry of another kind takes care; what `published`
    /// shows is what it has done of it.
    pub fn new(
        info: NodeInfo,
        wanted: Arc<watch::Sender<Members>>,
        published: watch::Receiver<Members>,
    ) -> Self {
        let (id, incarnation) = (info.id.clone(), info.incarnation);
        wanted.send_modify(|members| {
            members.insert(id.clone(), info);
        });
        Self { id, incarnation, wanted, published }
    }

    /// Changes what is announced: state, roles, epoch. Name and incarnation
    /// stay those of the registration.
    pub fn update(&self, info: NodeInfo) {
        let info = NodeInfo { id: self.id.clone(), incarnation: self.incarnation, ..info };
        self.wanted.send_if_modified(|members| match members.get_mut(&self.id) {
            Some(known) if known.incarnation == self.incarnation && *known != info => {
                *known = info;
                true
            }
            _ => false,
        });
    }

    /// Waits until others can see the latest announcement.
    pub async fn published(&mut self) {
        let (id, wanted) = (&self.id, &self.wanted);
        // An error means that the registry has stopped: nothing will change any more.
        let _ = self.published.wait_for(|seen| seen.get(id) == wanted.borrow().get(id)).await;
    }

    /// Takes the entry back and waits until others cannot see it, at most
    /// `limit`. Returns whether that was reached.
    pub async fn withdraw(mut self, limit: Duration) -> bool {
        self.take_back();
        tokio::time::timeout(limit, self.published()).await.is_ok()
    }

    fn take_back(&self) {
        self.wanted.send_if_modified(|members| {
            let ours = members.get(&self.id).is_some_and(|known| known.incarnation == self.incarnation);
            ours && members.remove(&self.id).is_some()
        });
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.take_back();
    }
}
