//! A registry over a store that is simulated: leases, an outage, entries lost,
//! an older state restored. A process keeps what it knows while it cannot reach
//! the store, and writes what is missing again, as the registry over etcd does;
//! one test holds both to the same cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{NodeId, NodeInfo};
use baton_registry::{Members, Registration, Registry, RegistryHealth};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// The store, which all processes share; clones are the same.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    kept: Kept,
    last_lease: u64,
    is_away: bool,
    cut_off: BTreeSet<String>,
}

/// What the store has on its disk.
#[derive(Clone, Default)]
pub struct Kept {
    entries: BTreeMap<NodeId, Entry>,
    leases: BTreeMap<u64, Instant>,
}

#[derive(Clone)]
struct Entry {
    info: NodeInfo,
    lease: u64,
}

/// One process's registry. Its end is that of the process: nothing is taken back.
pub struct SimulatedRegistry {
    wanted: Arc<watch::Sender<Members>>,
    published: watch::Sender<Members>,
    members: watch::Sender<Members>,
    health: Mutex<RegistryHealth>,
}

/// What a process has written, and under which lease.
#[derive(Default)]
struct Written {
    lease: Option<u64>,
    entries: Members,
}

/// How long entries outlive their process's last sign of life.
pub const LEASE: Duration = Duration::from_secs(15);

/// Time between two looks at the store.
const LOOK: Duration = Duration::from_millis(50);

// === impl Store ===

impl Store {
    /// Out of everybody's reach, or back.
    pub fn set_away(&self, is_away: bool) {
        let mut state = self.0.lock();
        state.is_away = is_away;
        if !is_away {
            state.kept.extend();
        }
    }

    /// Out of one process's reach, or back.
    pub fn set_cut_off(&self, process: &str, is_cut_off: bool) {
        let mut state = self.0.lock();
        if is_cut_off {
            state.cut_off.insert(process.to_owned())
        } else {
            state.cut_off.remove(process)
        };
    }

    /// Ends every lease at once.
    pub fn expire(&self) {
        self.0.lock().kept.leases.clear();
    }

    /// What it has now.
    pub fn kept(&self) -> Kept {
        self.0.lock().kept.clone()
    }

    /// Back to an older state.
    pub fn restore(&self, older: Kept) {
        let mut state = self.0.lock();
        state.kept = older;
        state.kept.extend();
    }

    fn is_reached_by(&self, process: &str) -> bool {
        let state = self.0.lock();
        !state.is_away && !state.cut_off.contains(process)
    }

    /// Keeps a process's lease or gives it another, writes what it wants and has not written or
    /// what has vanished, and reads everything. Whether the lease had gone.
    fn sync(&self, wanted: &Members, written: &mut Written) -> (Members, bool) {
        let mut state = self.0.lock();
        let now = Instant::now();
        state.kept.leases.retain(|_, until| *until > now);
        let held = written.lease.filter(|lease| state.kept.leases.contains_key(lease));
        let has_lost = written.lease.is_some() && held.is_none();
        let lease = held.unwrap_or_else(|| {
            state.last_lease += 1;
            *written = Written { lease: Some(state.last_lease), entries: Members::new() };
            state.last_lease
        });
        let Kept { entries, leases } = &mut state.kept;
        leases.insert(lease, now + LEASE);
        entries.retain(|id, entry| {
            let is_taken_back = entry.lease == lease && !wanted.contains_key(id);
            leases.contains_key(&entry.lease) && !is_taken_back
        });
        for (id, info) in wanted {
            if written.entries.get(id) != Some(info) || !entries.contains_key(id) {
                entries.insert(id.clone(), Entry { info: info.clone(), lease });
            }
        }
        written.entries = wanted.clone();
        (entries.iter().map(|(id, entry)| (id.clone(), entry.info.clone())).collect(), has_lost)
    }
}

// === impl Kept ===

impl Kept {
    /// Gives every lease its whole time, as a store does that comes back.
    fn extend(&mut self) {
        let until = Instant::now() + LEASE;
        self.leases.values_mut().for_each(|lease| *lease = until);
    }
}

// === impl SimulatedRegistry ===

impl Default for SimulatedRegistry {
    fn default() -> Self {
        let (wanted, published) = (Arc::new(watch::Sender::default()), watch::Sender::default());
        Self { wanted, published, members: watch::Sender::default(), health: Mutex::default() }
    }
}

impl SimulatedRegistry {
    /// Looks at the store for ever, as the process of this name.
    pub async fn follow(self: Arc<Self>, store: Store, process: String) {
        let mut written = Written::default();
        loop {
            let is_connected = store.is_reached_by(&process);
            self.health.lock().connected = is_connected;
            if is_connected {
                let wanted = self.wanted.borrow().clone();
                let (all, lost) = store.sync(&wanted, &mut written);
                self.health.lock().lease_losses += u64::from(lost);
                self.published.send_if_modified(|known| replace(known, wanted));
                self.members.send_if_modified(|known| replace(known, all));
            }
            sleep(LOOK).await;
        }
    }
}

/// Whether that was a change.
fn replace(known: &mut Members, now: Members) -> bool {
    let changed = *known != now;
    *known = now;
    changed
}

impl Registry for SimulatedRegistry {
    fn register(&self, info: NodeInfo) -> Registration {
        Registration::new(info, Arc::clone(&self.wanted), self.published.subscribe())
    }

    fn watch(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }

    fn stand(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    fn health(&self) -> RegistryHealth {
        *self.health.lock()
    }
}
