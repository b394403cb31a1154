//! A model's nodes, looked at again and again: which roles would be better, and who changes.
//! Pure: the clock is passed in.

use baton_protocol::{Role, StepCost};
use tokio::time::Instant;

use super::{
    advice::{Advice, Patience},
    outlook::{Demand, Machine, Split},
};
use crate::{BalancingConfig, router::Seen};

/// What is remembered of a model between looks.
#[derive(Debug, Default)]
pub struct Looks {
    patience: Patience,
}

/// What a look came to.
#[derive(Clone, Debug)]
pub struct Look<'a, N> {
    /// None while there is no node of a role, or too little is known.
    pub advice: Option<Advice>,
    /// Who is to have which role alone from now on.
    pub changes: Vec<(&'a N, Role)>,
}

/// Of the nodes that should change, one of so many does at once: what is foretold may be wrong.
const AT_ONCE: usize = 4;

// === impl Looks ===

impl Looks {
    /// At the ready nodes of each role, prefill first, that serve `demand`. Nobody changes unless
    /// `changes` are to be made.
    pub fn look<'a, N: Seen>(
        &mut self,
        demand: Option<Demand>,
        pools: [&'a [N]; 2],
        balancing: &BalancingConfig,
        (changes, now): (bool, Instant),
    ) -> Look<'a, N> {
        let advice = demand.and_then(|demand| {
            let waiting = pools[0].iter().map(|node| node.load().waiting_prefill_tokens as f64).sum();
            let split = Split { prefill: pools[0].len(), decode: pools[1].len() };
            Some(Advice::of(Demand { waiting, ..demand }, &machine(pools)?, split))
        });
        let (gains, by) = advice.as_ref().map_or((None, 0), |advice| (advice.gains, advice.by));
        let due = self.patience.hear(gains, balancing.looks, now).filter(|_| changes);
        let donors = due.map(|role| (donors(pools, role, now), role));
        let changes: Vec<_> = donors.map_or_else(Vec::new, |(donors, role)| {
            donors.into_iter().take(by.div_ceil(AT_ONCE)).map(|node| (node, role)).collect()
        });
        if !changes.is_empty() {
            self.rest(balancing, now);
        }
        Look { advice, changes }
    }

    /// A change was made, by whomever: none for a while.
    pub(crate) fn rest(&mut self, balancing: &BalancingConfig, now: Instant) {
        self.patience.rest(balancing.cool_down(), now);
    }
}

/// The mean of a model's nodes, each in its role; none while that is not known of any.
fn machine<N: Seen>([prefill, decode]: [&[N]; 2]) -> Option<Machine> {
    let loads = |nodes: &[N]| nodes.iter().map(Seen::load).collect::<Vec<_>>();
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

/// The nodes of the other role, those with the least to do first, which have that role alone and
/// nothing left over of an earlier one.
fn donors<N: Seen>([prefill, decode]: [&[N]; 2], gains: Role, now: Instant) -> Vec<&N> {
    let loses = if gains == Role::Prefill { decode } else { prefill };
    let free = loses.iter().filter(|node| node.info().roles.len() == 1 && node.load().left_over == 0);
    let mut donors: Vec<_> = free.collect();
    donors.sort_by_cached_key(|node| {
        let load = node.load();
        (u64::from(load.running + load.waiting).max(node.sent(now).requests), load.waiting_prefill_tokens)
    });
    donors
}
