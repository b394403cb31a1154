//! What can be seen and done, whichever way it is asked for.

use std::collections::BTreeSet;

use baton_protocol::{NodeId, RequestId, Role, node::UnknownRole};
use baton_trust::Rank;

use crate::{
    audit::Deed,
    desk::{Desk, Operator},
    error::AdminError,
    views::{
        Act, Advice, Cluster, Flushed, Incident, Limits, Node, Pace, PrefixIndex, Queue, Request, Road, Roles,
    },
};

pub(crate) fn cluster(desk: &Desk) -> Cluster {
    let coordinators = desk.coordinator.coordinators().into_iter();
    let coordinators = coordinators.map(|info| (info.id.0, info.control_addr)).collect();
    Cluster { coordinators, ..(&desk.coordinator.status()).into() }
}

pub(crate) fn nodes(desk: &Desk) -> Vec<Node> {
    desk.coordinator.status().nodes.into_iter().map(Into::into).collect()
}

pub(crate) fn node(desk: &Desk, id: String) -> Result<Node, AdminError> {
    nodes(desk).into_iter().find(|node| node.id == id).ok_or(AdminError::NoNode { id })
}

pub(crate) async fn drain(desk: &Desk, who: &Operator, id: String, force: bool) -> Result<Node, AdminError> {
    let done = who.does(Rank::Operator, desk.coordinator.drain(&NodeId(id.clone()), force)).await;
    let how = force.then(|| "even as the last one".to_owned());
    desk.audit.keep(who, Deed { what: "drain", whom: Some(&id), how }, done)?;
    node(desk, id)
}

pub(crate) async fn undrain(desk: &Desk, who: &Operator, id: String) -> Result<Node, AdminError> {
    let done = who.does(Rank::Operator, desk.coordinator.undrain(&NodeId(id.clone()))).await;
    desk.audit.keep(who, Deed { what: "undrain", whom: Some(&id), how: None }, done)?;
    node(desk, id)
}

pub(crate) async fn set_roles(
    desk: &Desk,
    who: &Operator,
    id: String,
    Roles { roles, force }: Roles,
) -> Result<Node, AdminError> {
    let how = Some(roles.join(" and ") + if force { ", even as the last one" } else { "" });
    let roles = roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
    let roles = roles.map_err(|unknown: UnknownRole| AdminError::Body { reason: unknown.to_string() })?;
    let node_id = NodeId(id.clone());
    let change = desk.coordinator.set_roles(&node_id, &roles, force);
    let done = who.does(Rank::Operator, change).await;
    desk.audit.keep(who, Deed { what: "roles", whom: Some(&id), how }, done)?;
    node(desk, id)
}

pub(crate) fn requests(desk: &Desk) -> Vec<Request> {
    desk.coordinator.requests().into_iter().map(Into::into).collect()
}

/// What was cancelled.
pub(crate) fn cancel(desk: &Desk, who: &Operator, id: &str) -> Result<Vec<Request>, AdminError> {
    let number = u128::from_str_radix(id, 16).ok().map(RequestId);
    let before = desk.coordinator.requests();
    let done = who.may(Rank::Operator).and_then(|()| {
        let found = number.filter(|number| desk.coordinator.cancel(*number));
        found.ok_or_else(|| AdminError::NoRequest { id: id.to_owned() })
    });
    let number = desk.audit.keep(who, Deed { what: "cancel", whom: Some(id), how: None }, done)?;
    Ok(before.into_iter().filter(|request| request.id == number).map(Into::into).collect())
}

pub(crate) fn queues(desk: &Desk) -> Vec<Queue> {
    desk.coordinator.queues().into_iter().map(Into::into).collect()
}

pub(crate) fn limits(desk: &Desk) -> Limits {
    desk.coordinator.limits().into()
}

pub(crate) fn set_limits(desk: &Desk, who: &Operator, wanted: Limits) -> Result<Limits, AdminError> {
    let done = who.may(Rank::Admin).and_then(|()| Ok(desk.coordinator.set_limits(wanted.into())?));
    let how = done.as_ref().ok().map(|now| format!("revision {}", now.revision));
    Ok(desk.audit.keep(who, Deed { what: "limits", whom: None, how }, done)?.into())
}

pub(crate) fn prefix_index(desk: &Desk) -> PrefixIndex {
    let stats = desk.coordinator.prefix_stats();
    let nodes = desk.coordinator.status().nodes.into_iter();
    let by_node = nodes.map(|node| (node.id.0, node.indexed_pages)).collect();
    PrefixIndex { pages: stats.pages, sets: stats.sets as u64, by_node }
}

/// Nodes whose prefix caches are empty now.
pub(crate) async fn flush(desk: &Desk, who: &Operator) -> Result<Flushed, AdminError> {
    let done = who.does(Rank::Admin, desk.coordinator.forget_prefixes()).await;
    let nodes = desk.audit.keep(who, Deed { what: "flush", whom: None, how: None }, done)?;
    Ok(Flushed { nodes: nodes.into_iter().map(|node| node.0).collect() })
}

pub(crate) fn advice(desk: &Desk) -> Vec<Advice> {
    desk.coordinator.advice().into_iter().map(Into::into).collect()
}

pub(crate) fn roads(desk: &Desk) -> Vec<Road> {
    desk.coordinator.roads().into_iter().map(Into::into).collect()
}

pub(crate) fn incidents(desk: &Desk) -> Vec<Incident> {
    desk.coordinator.incidents().into_iter().map(Into::into).collect()
}

pub(crate) fn pace(desk: &Desk) -> Pace {
    desk.coordinator.pace().into()
}

pub(crate) fn acts(desk: &Desk) -> Vec<Act> {
    desk.audit.latest()
}
