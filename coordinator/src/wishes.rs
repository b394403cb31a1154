//! What a client says of its patience.

use std::time::Duration;

use baton_protocol::Budgets;

use crate::budgets::Usual;

/// What a call asks of the time it takes, and of its place in line. What is
/// left out, [`BudgetConfig`](crate::BudgetConfig) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Until the first token.
    pub ttft: Option<Duration>,
    /// Between tokens.
    pub itl: Option<Duration>,
    /// Higher goes first where requests wait for a place.
    pub priority: i32,
}

// === impl Wishes ===

impl Wishes {
    /// What its reader should wait at most.
    pub(crate) fn budgets(&self, Usual { budgets, .. }: Usual) -> Budgets {
        Budgets { ttft: self.ttft.unwrap_or(budgets.ttft), itl: self.itl.unwrap_or(budgets.itl) }
    }

    /// Time between tokens that the decode node is to keep.
    pub(crate) fn kept_itl(&self, usual: Usual) -> Option<Duration> {
        self.itl.or_else(|| usual.kept_by_nodes.then_some(usual.budgets.itl))
    }
}
