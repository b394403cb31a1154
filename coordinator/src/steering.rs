//! What a person may do to a running cluster, and see of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{NodeId, NodeInfo, RequestId, Role};
use futures::future::join_all;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    Coordinator, IncidentKind, Limits, LimitsError, QueueStatus, RequestStatus,
    fleet::{Health, Node},
    node_client::DescribeError,
    prefix::PrefixStats,
};

/// Why a node was not told something, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// There is no such node.
    #[error("no node {node}")]
    Unknown {
        /// Who was meant.
        node: NodeId,
    },
    /// Requests could not be served without it, or not as they are meant to be.
    #[error("{node} is the last {role} node of {model} that takes work")]
    Last {
        /// Who was meant.
        node: NodeId,
        /// What it would do no more.
        role: Role,
        /// What it serves.
        model: String,
    },
    /// It refused.
    #[error("node {node} did not do it: {reason}")]
    Refused {
        /// Who was asked.
        node: NodeId,
        /// What it said.
        reason: String,
    },
    /// It does not answer, or not in words that are known.
    #[error("node {node} was not reached: {reason}")]
    Unreached {
        /// Who was asked.
        node: NodeId,
        /// What went wrong.
        reason: String,
    },
}

/// How long a node may take to say who it is.
const ASKED_LIMIT: Duration = Duration::from_secs(2);

// === impl SteerError ===

impl SteerError {
    /// A node that answered with this.
    fn of(node: NodeId, status: &Status) -> Self {
        let reason = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition => Self::Refused { node, reason },
            _ => Self::Unreached { node, reason },
        }
    }
}

impl Coordinator {
    /// Tells a node to take no new work and to finish what it has. It is told
    /// itself, so that every coordinator sees it. The last decode node of a
    /// model is drained only by `force`. A restarted node takes work again.
    ///
    /// # Errors
    /// When the node is unknown, is the last one, or does not do it.
    pub async fn drain(&self, node: &NodeId, force: bool) -> Result<(), SteerError> {
        let _turn = self.shared.steering.lock().await;
        let node = self.node(node)?;
        if force {
            return self.set_drained(&node, true).await;
        }
        self.check_spare(&node, Role::Decode)?;
        let decodes = node.health() == Health::Ready && node.info().roles.contains(&Role::Decode);
        self.set_drained(&node, true).await?;
        if decodes && let Err(last) = self.check_left(&node, Role::Decode).await {
            self.set_drained(&node, false).await?;
            return Err(last);
        }
        Ok(())
    }

    /// Gives a node these roles and takes others away, without a gap: from now
    /// on it gets new work of these alone, and what it has of others it
    /// finishes. The last prefill or decode node of a model loses that role
    /// only by `force`. A restarted node has the roles of its configuration again.
    ///
    /// # Errors
    /// When the node is unknown, is the last one, or does not do it.
    pub async fn set_roles(
        &self,
        node: &NodeId,
        roles: &BTreeSet<Role>,
        force: bool,
    ) -> Result<(), SteerError> {
        let _turn = self.shared.steering.lock().await;
        let node = self.node(node)?;
        let before = node.info();
        for lost in before.roles.difference(roles).filter(|_| !force) {
            self.check_spare(&node, *lost)?;
        }
        let works = node.health() == Health::Ready;
        self.tell_roles(&node, roles).await?;
        for lost in before.roles.difference(roles).filter(|_| works && !force) {
            if let Err(last) = self.check_left(&node, *lost).await {
                self.tell_roles(&node, &before.roles).await?;
                return Err(last);
            }
        }
        tracing::info!(node = %node.id(), before = ?before.roles, now = ?roles, "roles changed");
        Ok(())
    }

    /// Tells a node to take work again.
    ///
    /// # Errors
    /// When the node is unknown, or does not do it.
    pub async fn undrain(&self, node: &NodeId) -> Result<(), SteerError> {
        let _turn = self.shared.steering.lock().await;
        let node = self.node(node)?;
        self.set_drained(&node, false).await
    }

    /// Has every node forget what its prefix cache holds. What runs keeps its pages.
    ///
    /// Returns who did.
    ///
    /// # Errors
    /// When a node does not do it; the others have then.
    pub async fn forget_prefixes(&self) -> Result<Vec<NodeId>, SteerError> {
        let nodes = self.shared.fleet.nodes().into_iter().filter(|node| node.health() != Health::Lost);
        let forget = async |node: Arc<Node>| {
            let told = node.client().forget(node.info().incarnation).await;
            told.map(|()| node.id().clone()).map_err(|status| SteerError::of(node.id().clone(), &status))
        };
        let all = join_all(nodes.map(forget)).await.into_iter().collect::<Result<Vec<_>, _>>();
        self.shared.incidents.all(IncidentKind::Flushed, "an operator had all prefix caches flushed");
        all.inspect(|nodes| tracing::info!(?nodes, "prefix caches were flushed"))
            .inspect_err(|error| tracing::warn!(%error, "not all prefix caches were flushed"))
    }

    /// Requests in flight, the oldest first.
    pub fn requests(&self) -> Vec<RequestStatus> {
        self.shared.requests.all()
    }

    /// Ends a request; its reader is told that it was cancelled. False if there is none of this id.
    pub fn cancel(&self, id: RequestId) -> bool {
        let found = self.shared.requests.cancel(id);
        if found {
            tracing::info!(request = %id, "cancelled by an operator");
            self.shared.incidents.all(IncidentKind::Cancelled, format!("an operator cancelled request {id}"));
        }
        found
    }

    /// Who runs and who waits, by model.
    pub fn queues(&self) -> BTreeMap<String, QueueStatus> {
        self.shared.lines.status()
    }

    /// Limits in force.
    pub fn limits(&self) -> Limits {
        self.shared.limits.read().clone()
    }

    /// Changes the limits of this coordinator, until it restarts.
    ///
    /// # Errors
    /// When they were changed meanwhile, or a value cannot work. Then nothing changes.
    pub fn set_limits(&self, wanted: Limits) -> Result<Limits, LimitsError> {
        let mut limits = self.shared.limits.write();
        let before = limits.clone();
        limits.replace(wanted)?;
        tracing::info!(?before, now = ?*limits, "limits changed by an operator");
        self.shared.lines.set(&limits);
        let words = format!("an operator changed the limits: revision {}", limits.revision);
        self.shared.incidents.all(IncidentKind::Limits, words);
        Ok(limits.clone())
    }

    /// How much is known of prefix caches.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.shared.fleet.prefixes().stats()
    }

    fn node(&self, id: &NodeId) -> Result<Arc<Node>, SteerError> {
        let nodes = self.shared.fleet.nodes();
        let found = nodes.into_iter().find(|node| node.id() == id && node.health() != Health::Lost);
        found.ok_or_else(|| SteerError::Unknown { node: id.clone() })
    }

    /// Whether others take this work when the node does not.
    fn check_spare(&self, node: &Arc<Node>, role: Role) -> Result<(), SteerError> {
        let model = node.info().model.clone();
        let takes = self.shared.fleet.ready(&model, role);
        let is_last = takes.iter().all(|other| Arc::ptr_eq(other, node)) && !takes.is_empty();
        if is_last { Err(SteerError::Last { node: node.id().clone(), role, model }) } else { Ok(()) }
    }

    /// Whether others take this work now that the node does not. Another coordinator may have told
    /// them the same at the same moment: of two such, the later one learns it here, and both may.
    async fn check_left(&self, node: &Arc<Node>, role: Role) -> Result<(), SteerError> {
        let model = node.info().model.clone();
        let had_it = self.shared.fleet.ready(&model, role).into_iter();
        let ask = async |other: Arc<Node>| {
            if let Ok(Ok(info)) = timeout(ASKED_LIMIT, other.client().describe()).await {
                self.shared.fleet.heard(&other, info);
            }
        };
        join_all(had_it.filter(|other| !Arc::ptr_eq(other, node)).map(ask)).await;
        let left = self.shared.fleet.ready(&model, role);
        let has_left = left.iter().any(|other| !Arc::ptr_eq(other, node));
        if has_left { Ok(()) } else { Err(SteerError::Last { node: node.id().clone(), role, model }) }
    }

    async fn tell_roles(&self, node: &Arc<Node>, roles: &BTreeSet<Role>) -> Result<(), SteerError> {
        let known = node.info();
        self.heard(node, node.client().set_roles((known.incarnation, known.epoch), roles).await)
    }

    async fn set_drained(&self, node: &Arc<Node>, drain: bool) -> Result<(), SteerError> {
        let told = node.client().drain(node.info().incarnation, drain).await;
        self.heard(node, told)?;
        tracing::info!(node = %node.id(), drain, "told by an operator");
        Ok(())
    }

    /// Takes in who a node is after it was told something.
    fn heard(&self, node: &Arc<Node>, told: Result<NodeInfo, DescribeError>) -> Result<(), SteerError> {
        let id = node.id().clone();
        let info = told.map_err(|error| match error {
            DescribeError::Status(status) => SteerError::of(id, &status),
            DescribeError::Json(_) => {
                SteerError::Unreached { node: id, reason: "its answer cannot be read".to_owned() }
            }
        })?;
        if node.health() != Health::Lost {
            self.shared.fleet.heard(node, info);
        }
        Ok(())
    }
}
