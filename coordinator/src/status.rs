//! The cluster for people and for readiness checks.

use std::collections::BTreeSet;

use baton_protocol::{Incarnation, NodeId, Role, wire::KvPath};
use baton_registry::RegistryHealth;

use crate::fleet::{Fleet, Health, Load};

/// A model that nodes serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name in requests.
    pub name: String,
    /// Digest of its `ModelText`.
    pub text_digest: String,
    /// Longest sequence, in tokens.
    pub context_tokens: u32,
    /// What the pages of its smallest node hold, in tokens.
    pub pool_tokens: u32,
    /// Weights and shape in one hash.
    pub fingerprint: String,
}

/// The cluster as one coordinator sees it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// Whether some decode node takes requests now.
    pub ready: bool,
    /// How the registry is; nodes stay usable while it is away.
    pub registry: RegistryHealth,
    /// Every node, by name.
    pub nodes: Vec<NodeStatus>,
}

/// One node as one coordinator sees it.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its name.
    pub id: NodeId,
    /// What it admits.
    pub roles: BTreeSet<Role>,
    /// Counts role changes.
    pub epoch: u64,
    /// Which run of it this is.
    pub incarnation: Incarnation,
    /// Name of the model it serves.
    pub model: String,
    /// Its gRPC address.
    pub control_addr: String,
    /// What direct checks say.
    pub health: Health,
    /// Whether it gets no new work for a while, since it is slow beside the others.
    pub slow: bool,
    /// Whether the registry lists it.
    pub announced: bool,
    /// Requests of this coordinator on it.
    pub in_flight: usize,
    /// Its last report.
    pub load: Load,
    /// How KV comes to it, by that report.
    pub kv_paths: Vec<KvPath>,
    /// Pages of its prefix cache that are in the index.
    pub indexed_pages: u64,
}

// === impl ServedModel ===

impl ServedModel {
    /// Longest sequence that every node of it can hold, in tokens.
    pub fn longest(&self) -> u32 {
        self.context_tokens.min(self.pool_tokens)
    }
}

pub(crate) fn of(fleet: &Fleet, registry: RegistryHealth) -> ClusterStatus {
    let node = |node: &std::sync::Arc<crate::fleet::Node>| {
        let info = node.info();
        NodeStatus {
            id: info.id.clone(),
            roles: info.roles.clone(),
            epoch: info.epoch,
            incarnation: info.incarnation,
            model: info.model.clone(),
            control_addr: info.control_addr.clone(),
            health: node.health(),
            slow: fleet.is_outlier(node.id()),
            announced: node.is_announced(),
            in_flight: node.in_flight(),
            load: node.load(),
            kv_paths: node.kv_paths().to_vec(),
            indexed_pages: node.prefixes().len(),
        }
    };
    let nodes: Vec<_> = fleet.nodes().iter().map(node).collect();
    let takes = |node: &NodeStatus| node.health == Health::Ready && node.roles.contains(&Role::Decode);
    ClusterStatus { ready: nodes.iter().any(takes), registry, nodes }
}
