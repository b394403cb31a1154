//! Keeps this process's entries under one lease.

use std::{sync::atomic::Ordering, time::Duration};

use baton_protocol::{NodeId, NodeInfo};
use etcd_client::{Client, Compare, CompareOp, Error, PutOptions, Txn, TxnOp};
use tokio::{sync::watch, time::timeout};

use super::{ANSWER, LEAVE, Store, Trouble, backoff, office::Office};
use crate::{Backoff, Members};

/// Brings what others see to what this process wants seen.
pub(super) struct Lease {
    store: Store,
    wanted: watch::Receiver<Members>,
    publish: watch::Sender<Members>,
    office: Office,
    /// The lease we hold, as far as we know.
    id: Option<i64>,
    /// What was written under that lease.
    written: Members,
}

impl Lease {
    pub(super) fn new(
        store: Store,
        (wanted, publish): (watch::Receiver<Members>, watch::Sender<Members>),
        office: Office,
    ) -> Self {
        Self { store, wanted, publish, office, id: None, written: Members::new() }
    }

    /// Until the registry stops; then leaves cleanly if etcd answers.
    pub(super) async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let stop = self.store.stop.clone();
            let held = tokio::select! {
                () = stop.cancelled() => break,
                trouble = self.hold(&mut backoff) => trouble,
            };
            self.office.lose();
            tracing::warn!(error = %held, "registry lease in trouble, trying again");
            if self.store.wait(&mut backoff).await {
                break;
            }
        }
        self.office.lose();
        if let Some(id) = self.id
            && timeout(LEAVE, self.revoke(id)).await.is_err()
        {
            tracing::warn!("etcd did not answer in time, the lease is left to expire");
        }
    }

    /// Keeps lease and entries until there is trouble.
    async fn hold(&mut self, backoff: &mut Backoff) -> Trouble {
        let mut client = match self.store.connect().await {
            Ok(client) => client,
            Err(trouble) => return trouble,
        };
        let interval = Duration::from_secs(self.store.config.lease_seconds.into()) / 3;
        loop {
            if let Err(trouble) = self.renew(&mut client).await {
                return trouble;
            }
            let soon = tokio::time::Instant::now() + interval;
            loop {
                if let Err(trouble) = self.put_all(&mut client).await {
                    return trouble;
                }
                backoff.reset();
                // A change is written at once; the next renewal comes when it is due.
                tokio::select! {
                    () = tokio::time::sleep_until(soon) => break,
                    Ok(()) = self.wanted.changed() => {}
                    Ok(()) = self.office.wanted.changed() => {}
                }
            }
        }
    }

    /// Puts under the lease what goes with it.
    async fn put_all(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let Some(lease) = self.id else { return Ok(()) };
        self.office.stand(client, (&self.store, lease)).await?;
        self.write(client, lease).await
    }

    /// Keeps the lease, or takes a new one if it is gone.
    async fn renew(&mut self, client: &mut Client) -> Result<(), Trouble> {
        if let Some(id) = self.id {
            match timeout(ANSWER, client.lease_keep_alive(id)).await? {
                Ok(_) => return Ok(()),
                Err(Error::LeaseKeepAliveError(_)) => {
                    tracing::warn!("the registry lease is gone, registering again");
                    self.store.counters.lease_losses.fetch_add(1, Ordering::Relaxed);
                    self.id = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let seconds = self.store.config.lease_seconds.into();
        let granted = timeout(ANSWER, client.lease_grant(seconds, None)).await??;
        self.id = Some(granted.id());
        self.written.clear();
        Ok(())
    }

    /// Writes what differs, and what someone else deleted.
    async fn write(&mut self, client: &mut Client, lease: i64) -> Result<(), Trouble> {
        let wanted = self.wanted.borrow_and_update().clone();
        let gone: Vec<NodeId> = self.written.keys().filter(|id| !wanted.contains_key(id)).cloned().collect();
        for id in gone {
            let key = self.store.key(&id.0);
            let ours = Compare::lease(key.as_str(), CompareOp::Equal, lease);
            let delete = Txn::new().when([ours]).and_then([TxnOp::delete(key, None)]);
            timeout(ANSWER, client.txn(delete)).await??;
            self.written.remove(&id);
        }
        for (id, info) in &wanted {
            let put = self.put(info, lease)?;
            timeout(ANSWER, client.txn(put)).await??;
            self.written.insert(id.clone(), info.clone());
        }
        self.publish.send_if_modified(|seen| {
            let differs = *seen != wanted;
            *seen = wanted;
            differs
        });
        Ok(())
    }

    /// A new value is written; one that we wrote before only if its key has vanished.
    fn put(&self, info: &NodeInfo, lease: i64) -> Result<Txn, Trouble> {
        let key = self.store.key(&info.id.0);
        let options = PutOptions::new().with_lease(lease);
        let put = TxnOp::put(key.as_str(), serde_json::to_vec(info)?, Some(options));
        let vanished = Compare::create_revision(key, CompareOp::Equal, 0);
        let unchanged = self.written.get(&info.id) == Some(info);
        let when = if unchanged { vec![vanished] } else { Vec::new() };
        Ok(Txn::new().when(when).and_then([put]))
    }

    async fn revoke(&self, id: i64) {
        let revoked = async { Ok::<_, Trouble>(self.store.connect().await?.lease_revoke(id).await?) };
        if let Err(error) = revoked.await {
            tracing::warn!(%error, "the lease could not be revoked and is left to expire");
        }
    }
}
