//! Which roles nodes should have, by what is asked for and what their steps cost.
//!
//! - [`Demand`], [`Machine`], [`Split`], [`Outlook`]: what share of requests so many nodes keep within budgets
//! - [`Advice`]: what one node of the other role would change; and when it is time for that
//! - `demand`: what each model is asked for of late
//! - `share`: what of the nodes' work comes from other coordinators
//! - `metrics`: the advice, for autoscalers

mod advice;
mod demand;
mod metrics;
mod outlook;
mod share;

use std::{collections::BTreeMap, sync::Arc};

use baton_protocol::{NodeId, Role, StepCost};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use self::{
    advice::Advice,
    outlook::{Demand, Machine, Outlook, Split},
};
use self::{
    advice::Patience,
    share::{Attempts, Share},
};
pub(crate) use self::{
    demand::{Demands, Ended},
    metrics::BalancerMetrics,
};
use crate::{BalancerMode, Coordinator, Shared, fleet::Node};

/// What is advised, by model.
pub(crate) type Advised = Mutex<BTreeMap<String, Advice>>;

/// What is remembered of a model between looks.
#[derive(Default)]
struct Watched {
    patience: Patience,
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
                watched.patience.rest(config.balancing.cool_down(), Instant::now());
            }
            look(&coordinator, &model.name, watched, changes).await;
        }
    }
}

/// Advises on one model, and does it when it is time, if that is ours to do.
async fn look(coordinator: &Coordinator, model: &str, watched: &mut Watched, changes: bool) {
    let (shared, now) = (&coordinator.shared, Instant::now());
    let times = watched.share.times(attempts(shared, model));
    let advice = advise(shared, model, (times, now));
    if let Some(advice) = &advice {
        shared.metrics.balancer().advised(model, advice);
        shared.advised.lock().insert(model.to_owned(), *advice);
    } else if shared.advised.lock().remove(model).is_some() {
        shared.metrics.balancer().withdrawn(model);
    }
    let balancing = &shared.config.balancing;
    let due = watched.patience.hear(advice.and_then(|advice| advice.gains), balancing.looks, now);
    let Some(role) = due.filter(|_| changes) else { return };
    let Some(node) = donor(shared, model, role) else { return };
    watched.patience.rest(balancing.cool_down(), now);
    match coordinator.set_roles(&node, &[role].into(), false).await {
        Ok(()) => {
            tracing::info!(%node, model, %role, advice = ?advice, "role changed by the balancer");
            shared.metrics.balancer().changed(role);
        }
        Err(error) => tracing::warn!(%node, model, %role, %error, "the balancer could not change a role"),
    }
}

/// None while there is no node of a role, or too little is known.
fn advise(shared: &Shared, model: &str, (times, now): (f64, Instant)) -> Option<Advice> {
    let demand = shared.demands.of(model, now)?;
    let demand = Demand { requests: demand.requests * times, ..demand };
    let [prefill, decode] = [Role::Prefill, Role::Decode].map(|role| shared.fleet.ready(model, role));
    let machine = machine(&prefill, &decode)?;
    let split = Split { prefill: prefill.len(), decode: decode.len() };
    Some(Advice::of(demand, &machine, split))
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

/// The mean of a model's nodes, each in its role; none while that is not known of any.
fn machine(prefill: &[Arc<Node>], decode: &[Arc<Node>]) -> Option<Machine> {
    let loads = |nodes: &[Arc<Node>]| nodes.iter().map(|node| node.load()).collect::<Vec<_>>();
    let (runs, goes_on) = (loads(prefill), loads(decode));
    let steps = runs.iter().map(|load| load.step_prompt_tokens as f64).filter(|tokens| *tokens > 0.0);
    let tokens = decode.iter().map(|node| {
        let info = node.info();
        (info.pages * u64::from(info.kv.page_tokens)) as f64
    });
    Some(Machine {
        prefill: mean_cost(runs.iter().filter_map(|load| load.steps.prefill))?,
        step_tokens: mean(steps).unwrap_or(0.0),
        decode: mean_cost(goes_on.iter().filter_map(|load| load.steps.decode))?,
        tokens: mean(tokens)?,
    })
}

fn mean_cost(costs: impl Iterator<Item = StepCost> + Clone) -> Option<StepCost> {
    Some(StepCost {
        base: mean(costs.clone().map(|cost| cost.base))?,
        unit: mean(costs.clone().map(|cost| cost.unit))?,
        context: mean(costs.map(|cost| cost.context))?,
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    (count > 0.0).then(|| sum / count)
}

/// The node of the other role with the least to do, which has that role alone
/// and nothing left over of an earlier one.
fn donor(shared: &Shared, model: &str, gains: Role) -> Option<NodeId> {
    let loses = if gains == Role::Prefill { Role::Decode } else { Role::Prefill };
    let nodes = shared.fleet.ready(model, loses).into_iter();
    let free = nodes.filter(|node| node.info().roles.len() == 1 && node.load().left_over == 0);
    let work = |node: &Arc<Node>| {
        let load = node.load();
        (u64::from(load.running + load.waiting).max(node.in_flight() as u64), load.waiting_prefill_tokens)
    };
    free.min_by_key(work).map(|node| node.id().clone())
}
