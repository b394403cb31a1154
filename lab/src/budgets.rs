//! What a request should keep.

use serde::{Deserialize, Serialize};

/// Upper bounds on a request's times; what is absent is not asked for. A
/// request that is refused or fails keeps none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// From the time it was meant to be sent to its first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Between its tokens: its 99th percentile, in milliseconds; of fewer than a
    /// hundred gaps that is the longest.
    pub itl_ms: Option<f64>,
    /// Mean of the times between its tokens, in milliseconds.
    pub tpot_ms: Option<f64>,
    /// From the time it was meant to be sent to its end, in milliseconds.
    pub e2e_ms: Option<f64>,
}

/// What a server is told of a request's patience and place in line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Told where the endpoint is to tell them.
    pub budgets: Budgets,
    /// After which nobody waits for it any more, in milliseconds.
    pub deadline_ms: Option<f64>,
    /// Higher goes first where requests wait; 0 is usual.
    pub priority: i32,
}

// === impl Budgets ===

impl Budgets {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
