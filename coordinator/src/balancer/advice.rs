//! Which role more nodes would do most good, and whether it is time. Pure: the clock is passed in.

use std::{cmp::Ordering, time::Duration};

use baton_protocol::Role;
use tokio::time::Instant;

use super::outlook::{Demand, Machine, Outlook, Split};

/// What is known of a model's nodes, and what would be better.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What it is asked for.
    pub demand: Demand,
    /// Its nodes now.
    pub now: Split,
    /// What is foretold of them.
    pub outlook: Outlook,
    /// The nodes that would keep the budgets.
    pub wanted: Split,
    /// The role that nodes of the other should get.
    pub gains: Option<Role>,
    /// How many of them, until the split is as good as it can be.
    pub by: usize,
}

/// Keeps advice from becoming a change before it has lasted, and changes apart.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    advised: Option<Role>,
    looks: u32,
    quiet_until: Option<Instant>,
}

/// With so many requests within their budgets, nothing is changed.
const ENOUGH: f64 = 0.95;
/// Requests that moving nodes must bring within their budgets, as a share of all.
const GAIN: f64 = 0.05;
/// A pool is too busy from here on; moving nodes must then bring the pressure down to this share of it.
const BUSY: f64 = 0.9;
const RELIEF: f64 = 0.8;

// === impl Advice ===

impl Advice {
    /// For a model's nodes as they are. Nothing is advised that would leave a role without a node.
    pub fn of(demand: Demand, machine: &Machine, now: Split) -> Self {
        let outlook = Outlook::of(&demand, machine, now);
        let wanted = Split::wanted(&demand, machine);
        let best = Split::best(&demand, machine, now);
        let is_better = is_worth_it(&outlook, &Outlook::of(&demand, machine, best));
        let gains = match best.prefill.cmp(&now.prefill) {
            Ordering::Greater if is_better => Some(Role::Prefill),
            Ordering::Less if is_better => Some(Role::Decode),
            _ => None,
        };
        let by = if gains.is_some() { best.prefill.abs_diff(now.prefill) } else { 0 };
        Self { demand, now, outlook, wanted, gains, by }
    }
}

/// Whether the best split is so much better that nodes are to be moved towards it. It is the same from
/// wherever it is looked for: changes end when what is asked for stays the same, and none is undone.
fn is_worth_it(now: &Outlook, then: &Outlook) -> bool {
    let gain = then.attained() - now.attained();
    let relieves = now.pressure > BUSY && then.pressure <= RELIEF * now.pressure;
    now.attained() < ENOUGH && (gain >= GAIN || (gain >= 0.0 && relieves))
}

// === impl Patience ===

impl Patience {
    /// Hears the advice of one look; what is to be done of it now. It is due when
    /// it was the same for so many `looks` in a row, and no change was made for a while.
    pub(crate) fn hear(&mut self, advised: Option<Role>, looks: u32, now: Instant) -> Option<Role> {
        if self.advised == advised {
            self.looks = self.looks.saturating_add(1);
        } else {
            self.advised = advised;
            self.looks = 1;
        }
        let is_quiet = self.quiet_until.is_some_and(|until| now < until);
        advised.filter(|_| self.looks >= looks && !is_quiet)
    }

    /// A change was made, or tried: none for so long.
    pub(crate) fn rest(&mut self, cool_down: Duration, now: Instant) {
        *self = Self { quiet_until: Some(now + cool_down), ..Self::default() };
    }
}

#[cfg(test)]
mod tests;
