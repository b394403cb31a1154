//! What a person may do to a running cluster, and see of it.

use std::sync::Arc;

use baton_protocol::{NodeId, RequestId, Role};

use crate::{
    Coordinator, Limits, LimitsError, QueueStatus, RequestStatus,
    fleet::{Health, Node},
    node_client::DescribeError,
    prefix::PrefixStats,
};

/// Why a node was not drained, or does not take work again.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// There is no such node.
    #[error("no node {node}")]
    Unknown {
        /// Who was meant.
        node: NodeId,
    },
    /// Without it no request could be served.
    #[error("{node} is the last decode node of {model} that takes work")]
    Last {
        /// Who was meant.
        node: NodeId,
        /// What it serves.
        model: String,
    },
    /// It refused, or does not answer.
    #[error("node {node} did not do it: {reason}")]
    Refused {
        /// Who was asked.
        node: NodeId,
        /// What it said.
        reason: String,
    },
}

impl Coordinator {
    /// Tells a node to take no new work and to finish what it has. It is told
    /// itself, so that every coordinator sees it. The last decode node of a
    /// model is drained only by `force`. A restarted node takes work again.
    ///
    /// # Errors
    /// When the node is unknown, is the last one, or does not do it.
    pub async fn drain(&self, node: &NodeId, force: bool) -> Result<(), DrainError> {
        let node = self.node(node)?;
        let info = node.info();
        let takes = self.shared.fleet.ready(&info.model, Role::Decode);
        let is_last = takes.iter().all(|other| Arc::ptr_eq(other, &node)) && !takes.is_empty();
        if is_last && !force {
            return Err(DrainError::Last { node: node.id().clone(), model: info.model.clone() });
        }
        self.set_drained(&node, true).await
    }

    /// Tells a node to take work again.
    ///
    /// # Errors
    /// When the node is unknown, or does not do it.
    pub async fn undrain(&self, node: &NodeId) -> Result<(), DrainError> {
        let node = self.node(node)?;
        self.set_drained(&node, false).await
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
        }
        found
    }

    /// Who runs and who waits.
    pub fn queue(&self) -> QueueStatus {
        self.shared.admission.status()
    }

    /// Limits in force.
    pub fn limits(&self) -> Limits {
        *self.shared.limits.read()
    }

    /// Changes the limits of this coordinator, until it restarts.
    ///
    /// # Errors
    /// When they were changed meanwhile, or a value cannot work. Then nothing changes.
    pub fn set_limits(&self, wanted: Limits) -> Result<Limits, LimitsError> {
        let mut limits = self.shared.limits.write();
        let before = *limits;
        limits.replace(wanted)?;
        tracing::info!(?before, now = ?*limits, "limits changed by an operator");
        self.shared.admission.set(&limits);
        Ok(*limits)
    }

    /// How much is known of prefix caches.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.shared.fleet.prefixes().stats()
    }

    fn node(&self, id: &NodeId) -> Result<Arc<Node>, DrainError> {
        let nodes = self.shared.fleet.nodes();
        let found = nodes.into_iter().find(|node| node.id() == id && node.health() != Health::Lost);
        found.ok_or_else(|| DrainError::Unknown { node: id.clone() })
    }

    async fn set_drained(&self, node: &Arc<Node>, drain: bool) -> Result<(), DrainError> {
        let told = node.client().drain(node.info().incarnation, drain).await;
        let info = told.map_err(|error| {
            let reason = match error {
                DescribeError::Status(status) => status.message().to_owned(),
                DescribeError::Json(_) => "its answer cannot be read".to_owned(),
            };
            DrainError::Refused { node: node.id().clone(), reason }
        })?;
        tracing::info!(node = %node.id(), drain, "told by an operator");
        self.shared.fleet.heard_state(node, info.state);
        Ok(())
    }
}
