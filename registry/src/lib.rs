//! Who is in the cluster.
//!
//! - [`Registry`]: register a node, watch the members
//! - [`Registration`]: one node's entry; dropping it takes the entry back
//! - [`MemoryRegistry`]: members of one process
//! - [`EtcdRegistry`]: members of a cluster, held under leases in etcd
//! - [`node_service`]: what every node answers over gRPC: who it is, its load, its model's text
//!
//! A registry says which nodes *announced* themselves. It does not say who is
//! alive: when etcd is away, members stay as they were last seen, and whoever
//! routes work asks the nodes directly.

mod backoff;
mod etcd;
mod memory;
pub mod node_service;
mod registration;

use std::collections::BTreeMap;

use baton_protocol::{NodeId, NodeInfo};
use tokio::sync::watch;

pub use backoff::Backoff;
#[cfg(any(test, fuzzing))]
pub use etcd::fuzzing;
pub use etcd::{EtcdConfig, EtcdRegistry, RegistryError};
pub use memory::MemoryRegistry;
pub use node_service::NodeService;
pub use registration::Registration;

/// The announced nodes by name.
pub type Members = BTreeMap<NodeId, NodeInfo>;

/// Where nodes announce themselves and find each other. Nothing here waits:
/// a registry out of reach is a registry that publishes later.
pub trait Registry: Send + Sync + 'static {
    /// Announces a node until the registration is dropped. A second
    /// registration of the same name replaces the first.
    fn register(&self, info: NodeInfo) -> Registration;

    /// The members, now and whenever they change. Members are kept while the
    /// registry's store is away.
    fn watch(&self) -> watch::Receiver<Members>;

    /// Stands for what one process of the cluster does alone. True while it
    /// is this one; while the store is away, nobody is.
    fn stand(&self) -> watch::Receiver<bool>;

    /// How the registry itself is.
    fn health(&self) -> RegistryHealth;
}

/// State and counts of a registry, for status pages and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryHealth {
    /// Whether the members are being followed; false means they are the last known ones.
    pub connected: bool,
    /// Entries that could not be read and were skipped.
    pub bad_values: u64,
    /// Times that a watch was ended by the store and the members were listed again.
    pub resyncs: u64,
    /// Times that our own lease was lost and taken again.
    pub lease_losses: u64,
}
