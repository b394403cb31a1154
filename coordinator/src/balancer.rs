//! Which roles nodes should have, by what is asked for and what their steps cost.
//!
//! - [`Demand`], [`Machine`], [`Split`], [`Outlook`]: what share of requests so many nodes keep within budgets
//! - [`Advice`]: what nodes of the other role would change; and when it is time for that
//! - [`Demands`]: what each model is asked for of late; [`Ended`]: what a request was
//! - [`Looks`]: a model's nodes, looked at again and again; [`Look`]: what one of these came to
//! - `share`: what of the nodes' work comes from other coordinators
//! - `metrics`: the advice, for autoscalers

mod advice;
mod demand;
mod looks;
mod metrics;
mod outlook;
mod share;

use std::{collections::BTreeMap, sync::Arc};

use baton_protocol::{NodeId, Role};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub(crate) use self::metrics::BalancerMetrics;
use self::share::{Attempts, Share};
pub use self::{
    advice::Advice,
    demand::{Demands, Ended},
    looks::{Look, Looks},
    outlook::{Asked, Demand, Machine, Outlook, Split},
};
use crate::{BalancerMode, Coordinator, Shared, fleet::Node};

/// What is advised, by model.
pub(crate) type Advised = Mutex<BTreeMap<String, Advice>>;

/// What is remembered of a model between looks.
#[derive(Default)]
struct Watched {
    looks: Looks,
    share: Share,
}

/// Looks at every model again and again until `stop`. Of several coordinators
/// each advises, and one makes changes.
pub(crate) async fn run(coordinator: Coordinator, stop: CancellationToken) {
    let config = &coordinator.shared.config;
    if config.balancer == BalancerMode::Off {
        return;
    }
    let office = match config.balancer {
        BalancerMode::On => Some(coordinator.shared.registry.stand()),
        BalancerMode::Off | BalancerMode::Advise => None,
    };
    let mut changes = false;
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    let mut looks = interval(config.balancing.interval());
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let before = std::mem::replace(&mut changes, office.as_ref().is_some_and(|held| *held.borrow()));
        coordinator.shared.metrics.balancer().office(changes);
        for model in coordinator.models() {
            let watched = watched.entry(model.name.clone()).or_default();
            if changes && !before {
                // Who did this before may have made a change just now.
                watched.looks.rest(&config.balancing, Instant::now());
            }
            look(&coordinator, &model.name, watched, changes).await;
        }
    }
}

/// Advises on one model, and begins with it when it is time, if that is ours to do.
async fn look(coordinator: &Coordinator, model: &str, watched: &mut Watched, changes: bool) {
    let (shared, now) = (&coordinator.shared, Instant::now());
    let times = watched.share.times(attempts(shared, model));
    let demand = shared.demands.of(model, now);
    let demand = demand.map(|demand| Demand { requests: demand.requests * times, ..demand });
    let prefill = shared.fleet.ready(model, Role::Prefill);
    let decode = shared.fleet.in_use(model, now);
    let pools = [prefill.as_slice(), decode.as_slice()];
    let look = watched.looks.look(demand, pools, &shared.config.balancing, (changes, now));
    for (node, role) in &look.changes {
        change(coordinator, (model, *role), node.id(), look.advice.as_ref()).await;
    }
    if let Some(advice) = look.advice {
        shared.metrics.balancer().advised(model, &advice);
        shared.advised.lock().insert(model.to_owned(), advice);
    } else if shared.advised.lock().remove(model).is_some() {
        shared.metrics.balancer().withdrawn(model);
    }
}

/// Gives a node a role.
async fn change(
    coordinator: &Coordinator,
    (model, role): (&str, Role),
    node: &NodeId,
    advice: Option<&Advice>,
) {
    match coordinator.set_roles(node, &[role].into(), false).await {
        Ok(()) => {
            tracing::info!(%node, model, %role, ?advice, "role changed by the balancer");
            coordinator.shared.metrics.balancer().changed(role);
        }
        Err(error) => tracing::warn!(%node, model, %role, %error, "the balancer could not change a role"),
    }
}

/// Of every node of the model.
fn attempts(shared: &Shared, model: &str) -> Vec<(NodeId, Attempts)> {
    let nodes = shared.fleet.nodes().into_iter().filter(|node| node.info().model == model);
    // Without a report yet, all that it ever began would count as new.
    let nodes = nodes.filter(|node| node.load().pages.total > 0);
    let attempts = |node: Arc<Node>| {
        let (begun, sent) = (node.load().attempts_begun, node.sent_attempts());
        (node.id().clone(), Attempts { begun, sent })
    };
    nodes.map(attempts).collect()
}
