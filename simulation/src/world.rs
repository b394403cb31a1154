//! What is known of a run from outside: which pools there are, what became of
//! the requests, what was found wrong.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use baton_engine::EngineHandle;
use baton_kv_transfer::TransferConfig;
use baton_trust::Trust;
use parking_lot::Mutex;

use crate::{clients::Outcome, network::Hosts, registry::Store, system};

/// A role's hosts: name and gRPC port.
pub const PREFILLS: [(&str, u16); 2] = [("prefill-1", 7001), ("prefill-2", 7002)];
/// See [`PREFILLS`].
pub const DECODES: [(&str, u16); 2] = [("decode-1", 7003), ("decode-2", 7004)];
/// The host of the coordinator and its clients.
pub const COORDINATOR: &str = "coordinator";

/// Shared by the hosts of a run and by what watches them.
pub struct World {
    /// The registry's store.
    pub store: Store,
    /// Reaches nodes over the simulated network.
    pub trust: Trust,
    /// What all nodes' transfers have in common.
    pub transfer: TransferConfig,
    /// Time of an engine's step beside what its node is slowed down by.
    pub step: Duration,
    state: Mutex<State>,
    incarnations: AtomicU64,
}

#[derive(Default)]
struct State {
    engines: BTreeMap<&'static str, EngineHandle>,
    slow: BTreeMap<&'static str, Duration>,
    outcomes: BTreeMap<usize, Outcome>,
    wrong: Vec<String>,
}

// === impl World ===

impl World {
    /// Nothing has happened yet.
    pub fn new(transfer: TransferConfig, step: Duration) -> Arc<Self> {
        let hosts = Hosts([PREFILLS, DECODES].concat());
        Arc::new(Self {
            store: Store::default(),
            trust: Trust::over(Arc::new(hosts)),
            transfer,
            step,
            state: Mutex::default(),
            incarnations: AtomicU64::new(1),
        })
    }

    /// A number that no other start of a node has.
    pub fn incarnation(&self) -> u64 {
        self.incarnations.fetch_add(1, Ordering::Relaxed)
    }

    /// A node runs from now on.
    pub fn started(&self, node: &'static str, engine: EngineHandle) {
        self.state.lock().engines.insert(node, engine);
    }

    /// It does not any more; its pages are gone with it.
    pub fn crashed(&self, node: &'static str) {
        self.state.lock().engines.remove(node);
    }

    /// Nodes that run, and their engines.
    pub fn engines(&self) -> BTreeMap<&'static str, EngineHandle> {
        self.state.lock().engines.clone()
    }

    /// Slows a node's steps down by so much, or no more.
    pub fn set_slow(&self, node: &'static str, by: Option<Duration>) {
        let mut state = self.state.lock();
        match by {
            Some(by) => state.slow.insert(node, by),
            None => state.slow.remove(node),
        };
    }

    /// How long a step of this node takes now.
    pub fn step(&self, node: &'static str) -> Duration {
        self.step + self.state.lock().slow.get(node).copied().unwrap_or_default()
    }

    /// What became of a request.
    pub fn ended(&self, request: usize, outcome: Outcome) {
        tracing::info!(request, ?outcome, "ended");
        let before = self.state.lock().outcomes.insert(request, outcome);
        if let Some(before) = before {
            self.wrong(&format!("request {request} ended twice, first as {before:?}"));
        }
    }

    /// What became of the requests that have ended, by their numbers.
    pub fn outcomes(&self) -> BTreeMap<usize, Outcome> {
        self.state.lock().outcomes.clone()
    }

    /// Something that must not be.
    pub fn wrong(&self, what: &str) {
        tracing::error!(what, "wrong");
        self.state.lock().wrong.push(format!("after {:.3} s: {what}", system::elapsed().as_secs_f64()));
    }

    /// All that must not have been.
    pub fn all_wrong(&self) -> Vec<String> {
        self.state.lock().wrong.clone()
    }
}
