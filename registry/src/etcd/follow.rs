//! Lists and watches everyone's entries.

use std::{sync::atomic::Ordering, time::Duration};

use etcd_client::{Client, Event, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    ANSWER, Store, Trouble, backoff,
    view::{Entry, View},
};
use crate::{Backoff, Members};

/// Keeps `members` as etcd has them, or as it last had them.
pub(super) struct Follow {
    store: Store,
    view: View,
    tell: watch::Sender<Members>,
}

impl Follow {
    pub(super) fn new(store: Store, tell: watch::Sender<Members>) -> Self {
        Self { store, view: View::default(), tell }
    }

    /// Until the registry stops.
    pub(super) async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let stop = self.store.stop.clone();
            let trouble = tokio::select! {
                () = stop.cancelled() => return,
                trouble = self.follow(&mut backoff) => trouble,
            };
            self.store.counters.connected.store(false, Ordering::Relaxed);
            tracing::warn!(error = %trouble, "etcd is away, going on with the last known members");
            if self.store.wait(&mut backoff).await {
                return;
            }
        }
    }

    /// List, watch from there, list again: until there is trouble.
    async fn follow(&mut self, backoff: &mut Backoff) -> Trouble {
        let mut client = match self.store.connect().await {
            Ok(client) => client,
            Err(trouble) => return trouble,
        };
        let relist = Duration::from_secs(self.store.config.relist_seconds.into());
        loop {
            if let Err(trouble) = self.list(&mut client).await {
                return trouble;
            }
            self.store.counters.connected.store(true, Ordering::Relaxed);
            backoff.reset();
            let from = self.view.revision() + 1;
            if let Err(trouble) = self.watch(&mut client, from, Instant::now() + relist).await {
                return trouble;
            }
        }
    }

    async fn list(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let options = GetOptions::new().with_prefix();
        let answer = timeout(ANSWER, client.get(self.store.prefix.as_str(), Some(options))).await??;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let prefix = &self.store.prefix;
        let entries = answer.kvs().iter().filter_map(|kv| entry(prefix, kv, Some(kv.value())));
        self.view.list(revision, entries);
        self.tell();
        Ok(())
    }

    /// Applies events until `relist`, or until etcd cancels the watch, as it
    /// does when `from` has been compacted away: both times a list is due.
    pub(super) async fn watch(
        &mut self,
        client: &mut Client,
        from: i64,
        relist: Instant,
    ) -> Result<(), Trouble> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let mut stream = timeout(ANSWER, client.watch(self.store.prefix.as_str(), Some(options))).await??;
        loop {
            let message = tokio::select! {
                () = tokio::time::sleep_until(relist) => return Ok(()),
                message = stream.message() => message?.ok_or(Trouble::Ended)?,
            };
            if message.canceled() {
                tracing::info!(
                    from,
                    compacted = message.compact_revision(),
                    "watch cancelled, listing again"
                );
                self.store.counters.resyncs.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            self.apply(&message);
        }
    }

    fn apply(&mut self, message: &WatchResponse) {
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            if let Some(entry) = entry(&self.store.prefix, kv, value) {
                self.view.apply(&entry);
            }
        }
        let applied = message.events().iter().filter_map(Event::kv).map(KeyValue::mod_revision);
        self.view.advance(applied.max().unwrap_or(0));
        self.tell();
    }

    fn tell(&self) {
        self.store.counters.bad_values.store(self.view.bad_values(), Ordering::Relaxed);
        self.tell.send_if_modified(|members| {
            let differs = members != self.view.members();
            if differs {
                members.clone_from(self.view.members());
            }
            differs
        });
    }
}

/// A key of ours; one whose name is no text is not.
fn entry<'a>(prefix: &str, kv: &'a KeyValue, value: Option<&'a [u8]>) -> Option<Entry<'a>> {
    let name = std::str::from_utf8(kv.key()).ok()?.strip_prefix(prefix)?;
    Some(Entry { name, value, revision: kv.mod_revision() })
}
