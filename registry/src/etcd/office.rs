//! What one process of the cluster does alone: a key under the lease of whoever does it.

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{sync::watch, time::timeout};

use super::{ANSWER, Store, Trouble};

/// A process's standing for it.
#[derive(Debug)]
pub(super) struct Office {
    /// Whether it stands.
    pub(super) wanted: watch::Receiver<bool>,
    /// Whether it is the one.
    pub(super) held: watch::Sender<bool>,
}

// === impl Office ===

impl Office {
    /// Takes the office if it is wanted and nobody has it. It goes with the lease.
    pub(super) async fn stand(
        &mut self,
        client: &mut Client,
        (store, lease): (&Store, i64),
    ) -> Result<(), Trouble> {
        if !*self.wanted.borrow_and_update() {
            return Ok(());
        }
        let key = store.office.as_str();
        let free = Compare::create_revision(key, CompareOp::Equal, 0);
        let put = TxnOp::put(key, "", Some(PutOptions::new().with_lease(lease)));
        let take = Txn::new().when([free]).and_then([put]).or_else([TxnOp::get(key, None)]);
        let answer = timeout(ANSWER, client.txn(take)).await??;
        let is_ours = |response: &TxnOpResponse| match response {
            TxnOpResponse::Get(found) => found.kvs().iter().any(|kv| kv.lease() == lease),
            _ => false,
        };
        self.set(answer.succeeded() || answer.op_responses().iter().any(is_ours));
        Ok(())
    }

    /// The lease may be gone.
    pub(super) fn lose(&self) {
        self.set(false);
    }

    fn set(&self, held: bool) {
        let changed = self.held.send_if_modified(|known| std::mem::replace(known, held) != held);
        if changed {
            tracing::info!(held, "the office of the cluster");
        }
    }
}
