//! What can be seen and done, whichever way it is asked for.

use std::collections::BTreeSet;

use baton_coordinator::Coordinator;
use baton_protocol::{NodeId, RequestId, Role, node::UnknownRole};

use crate::{
    error::AdminError,
    views::{Advice, Cluster, Flushed, Incident, Limits, Node, PrefixIndex, Queue, Request, Road, Roles},
};

pub(crate) fn cluster(coordinator: &Coordinator) -> Cluster {
    (&coordinator.status()).into()
}

pub(crate) fn nodes(coordinator: &Coordinator) -> Vec<Node> {
    coordinator.status().nodes.into_iter().map(Into::into).collect()
}

pub(crate) fn node(coordinator: &Coordinator, id: String) -> Result<Node, AdminError> {
    nodes(coordinator).into_iter().find(|node| node.id == id).ok_or(AdminError::NoNode { id })
}

pub(crate) async fn drain(coordinator: &Coordinator, id: String, force: bool) -> Result<Node, AdminError> {
    coordinator.drain(&NodeId(id.clone()), force).await?;
    node(coordinator, id)
}

pub(crate) async fn undrain(coordinator: &Coordinator, id: String) -> Result<Node, AdminError> {
    coordinator.undrain(&NodeId(id.clone())).await?;
    node(coordinator, id)
}

pub(crate) async fn set_roles(
    coordinator: &Coordinator,
    id: String,
    Roles { roles, force }: Roles,
) -> Result<Node, AdminError> {
    let roles = roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
    let roles = roles.map_err(|unknown: UnknownRole| AdminError::Body { reason: unknown.to_string() })?;
    coordinator.set_roles(&NodeId(id.clone()), &roles, force).await?;
    node(coordinator, id)
}

pub(crate) fn requests(coordinator: &Coordinator) -> Vec<Request> {
    coordinator.requests().into_iter().map(Into::into).collect()
}

/// What was cancelled.
pub(crate) fn cancel(coordinator: &Coordinator, id: String) -> Result<Vec<Request>, AdminError> {
    let number = u128::from_str_radix(&id, 16).ok().map(RequestId);
    let before = coordinator.requests();
    let Some(number) = number.filter(|number| coordinator.cancel(*number)) else {
        return Err(AdminError::NoRequest { id });
    };
    Ok(before.into_iter().filter(|request| request.id == number).map(Into::into).collect())
}

pub(crate) fn queues(coordinator: &Coordinator) -> Vec<Queue> {
    coordinator.queues().into_iter().map(Into::into).collect()
}

pub(crate) fn limits(coordinator: &Coordinator) -> Limits {
    coordinator.limits().into()
}

pub(crate) fn set_limits(coordinator: &Coordinator, wanted: Limits) -> Result<Limits, AdminError> {
    Ok(coordinator.set_limits(wanted.into())?.into())
}

pub(crate) fn prefix_index(coordinator: &Coordinator) -> PrefixIndex {
    let stats = coordinator.prefix_stats();
    let nodes = coordinator.status().nodes.into_iter();
    let by_node = nodes.map(|node| (node.id.0, node.indexed_pages)).collect();
    PrefixIndex { pages: stats.pages, sets: stats.sets as u64, by_node }
}

/// Nodes whose prefix caches are empty now.
pub(crate) async fn flush(coordinator: &Coordinator) -> Result<Flushed, AdminError> {
    let nodes = coordinator.forget_prefixes().await?;
    Ok(Flushed { nodes: nodes.into_iter().map(|node| node.0).collect() })
}

pub(crate) fn advice(coordinator: &Coordinator) -> Vec<Advice> {
    coordinator.advice().into_iter().map(Into::into).collect()
}

pub(crate) fn roads(coordinator: &Coordinator) -> Vec<Road> {
    coordinator.roads().into_iter().map(Into::into).collect()
}

pub(crate) fn incidents(coordinator: &Coordinator) -> Vec<Incident> {
    coordinator.incidents().into_iter().map(Into::into).collect()
}
