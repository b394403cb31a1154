//! What can be seen and done, whichever way it is asked for.

use std::{collections::BTreeSet, sync::Arc};

use baton_protocol::{NodeId, RequestId, Role, node::UnknownRole};
use baton_trust::Rank;

use crate::{
    audit::Deed,
    desk::{Desk, Operator},
    error::AdminError,
    views::{
        Act, Advice, Cluster, Flushed, Handoff, Incident, Limits, Node, Pace, PrefixIndex, Queue, Request,
        Road, Roles,
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

pub(crate) async fn drain(desk: Desk, who: Operator, id: String, force: bool) -> Result<Node, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let how = force.then(|| "even as the last one".to_owned());
        let deed = Deed { what: "drain", whom: Some(&id), how, needs: Rank::Operator };
        desk.audit.of(&who, deed, desk.coordinator.drain(&NodeId(id.clone()), force)).await?;
        node(&desk, id)
    })
    .await
}

pub(crate) async fn undrain(desk: Desk, who: Operator, id: String) -> Result<Node, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let deed = Deed { what: "undrain", whom: Some(&id), how: None, needs: Rank::Operator };
        desk.audit.of(&who, deed, desk.coordinator.undrain(&NodeId(id.clone()))).await?;
        node(&desk, id)
    })
    .await
}

pub(crate) async fn set_roles(
    desk: Desk,
    who: Operator,
    id: String,
    Roles { roles, force }: Roles,
) -> Result<Node, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let how = Some(roles.join(" and ") + if force { ", even as the last one" } else { "" });
        let deed = Deed { what: "roles", whom: Some(&id), how, needs: Rank::Operator };
        let node_id = NodeId(id.clone());
        let change = async {
            let known = roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
            let known =
                known.map_err(|unknown: UnknownRole| AdminError::Body { reason: unknown.to_string() })?;
            Ok::<_, AdminError>(desk.coordinator.set_roles(&node_id, &known, force).await?)
        };
        desk.audit.of(&who, deed, change).await?;
        node(&desk, id)
    })
    .await
}

pub(crate) fn requests(desk: &Desk) -> Vec<Request> {
    desk.coordinator.requests().into_iter().map(Into::into).collect()
}

/// What was cancelled.
pub(crate) async fn cancel(desk: Desk, who: Operator, id: String) -> Result<Vec<Request>, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let number = u128::from_str_radix(&id, 16).ok().map(RequestId);
        let before = desk.coordinator.requests();
        let ending = async {
            let found = number.filter(|number| desk.coordinator.cancel(*number));
            found.ok_or_else(|| AdminError::NoRequest { id: id.clone() })
        };
        let deed = Deed { what: "cancel", whom: Some(&id), how: None, needs: Rank::Operator };
        let number = desk.audit.of(&who, deed, ending).await?;
        Ok(before.into_iter().filter(|request| request.id == number).map(Into::into).collect())
    })
    .await
}

pub(crate) fn queues(desk: &Desk) -> Vec<Queue> {
    desk.coordinator.queues().into_iter().map(Into::into).collect()
}

pub(crate) fn limits(desk: &Desk) -> Limits {
    desk.coordinator.limits().into()
}

pub(crate) async fn set_limits(desk: Desk, who: Operator, wanted: Limits) -> Result<Limits, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let how = Some(difference(&limits(&desk), &wanted));
        let setting = async { desk.coordinator.set_limits(wanted.into()) };
        let deed = Deed { what: "limits", whom: None, how, needs: Rank::Admin };
        Ok(desk.audit.of(&who, deed, setting).await?.into())
    })
    .await
}

/// What is wanted that is not so now, as NAME=VALUE.
fn difference(now: &Limits, wanted: &Limits) -> String {
    let (now, wanted) = (serde_json::to_value(now), serde_json::to_value(wanted));
    let (now, wanted) = (now.unwrap_or_default(), wanted.unwrap_or_default());
    let fields = wanted.as_object().into_iter().flatten();
    let others = fields.filter(|(name, value)| *name != "revision" && now.get(*name) != Some(*value));
    others.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

pub(crate) fn prefix_index(desk: &Desk) -> PrefixIndex {
    let stats = desk.coordinator.prefix_stats();
    let nodes = desk.coordinator.status().nodes.into_iter();
    let by_node = nodes.map(|node| (node.id.0, node.indexed_pages)).collect();
    PrefixIndex { pages: stats.pages, sets: stats.sets as u64, by_node }
}

/// Nodes whose prefix caches are empty now.
pub(crate) async fn flush(desk: Desk, who: Operator) -> Result<Flushed, AdminError> {
    let acts = Arc::clone(&desk.audit);
    acts.whole(async move {
        let deed = Deed { what: "flush", whom: None, how: None, needs: Rank::Admin };
        let nodes = desk.audit.of(&who, deed, desk.coordinator.forget_prefixes()).await?;
        Ok(Flushed { nodes: nodes.into_iter().map(|node| node.0).collect() })
    })
    .await
}

pub(crate) fn advice(desk: &Desk) -> Vec<Advice> {
    desk.coordinator.advice().into_iter().map(Into::into).collect()
}

pub(crate) fn roads(desk: &Desk) -> Vec<Road> {
    desk.coordinator.roads().into_iter().map(Into::into).collect()
}

pub(crate) fn handoffs(desk: &Desk) -> Vec<Handoff> {
    desk.coordinator.handoffs().into_iter().map(Into::into).collect()
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
