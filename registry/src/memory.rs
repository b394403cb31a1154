//! The members of one process.

use std::sync::Arc;

use baton_protocol::NodeInfo;
use tokio::sync::watch;

use crate::{Members, Registration, Registry, RegistryHealth};

/// Members shared within a process; clones are the same registry.
#[derive(Clone, Debug)]
pub struct MemoryRegistry {
    members: Arc<watch::Sender<Members>>,
}

impl MemoryRegistry {
    /// A registry without members.
    pub fn new() -> Self {
        Self { members: Arc::new(watch::Sender::new(Members::new())) }
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry for MemoryRegistry {
    fn register(&self, info: NodeInfo) -> Registration {
        Registration::new(info, Arc::clone(&self.members), self.members.subscribe())
    }

    fn watch(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }

    fn stand(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    fn health(&self) -> RegistryHealth {
        RegistryHealth { connected: true, ..RegistryHealth::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use baton_protocol::NodeState;

    use super::*;
    use crate::etcd::tests::node;

    #[tokio::test]
    async fn members_come_change_and_go() {
        let registry = MemoryRegistry::new();
        let mut members = registry.watch();
        let registration = registry.register(node("decode-1", 1));
        assert_eq!(members.borrow_and_update().len(), 1);

        registration.update(NodeInfo { state: NodeState::Draining, ..node("decode-1", 1) });
        assert!(members.has_changed().unwrap());
        assert_eq!(members.borrow_and_update()[&"decode-1".into()].state, NodeState::Draining);

        assert!(registration.withdraw(Duration::from_secs(1)).await);
        assert!(members.borrow_and_update().is_empty());
    }

    #[test]
    fn an_old_incarnation_does_not_take_back_its_successor() {
        let registry = MemoryRegistry::new();
        let old = registry.register(node("decode-1", 1));
        let _new = registry.register(node("decode-1", 2));
        old.update(NodeInfo { epoch: 9, ..node("decode-1", 1) });
        drop(old);
        assert_eq!(registry.watch().borrow()[&"decode-1".into()], node("decode-1", 2));
    }
}
