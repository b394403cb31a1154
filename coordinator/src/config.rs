//! What a person may set.

use std::time::Duration;

use serde::Deserialize;

use crate::{BudgetConfig, Limits, LimitsError, prefix::PrefixLimits};

/// Limits and rules of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Models that are to be served, by name; the first one is meant by calls that name none. While
    /// no node has announced one of them it is unavailable, not unknown. Others may be served too.
    pub models: Vec<String>,
    /// How nodes are ranked.
    pub policy: PolicyName,
    /// Requests of a model running at once.
    pub max_running: usize,
    /// Requests of a model waiting for a place beyond those; more are refused.
    pub max_waiting: usize,
    /// How long a request may be expected to wait for a place; who is expected to wait longer
    /// is refused at once, and who waits twice as long is refused then.
    pub max_wait_ms: u64,
    /// How long a request may wait for a node when none is ready.
    pub node_wait_ms: u64,
    /// Attempts of one request, the first included.
    pub max_attempts: u32,
    /// Prompts of which the decode node is known to lack fewer tokens than this are prefilled there; 0 is never.
    pub local_prefill_below_tokens: usize,
    /// Prefill nodes named to the decode node, best first.
    pub max_prefill_candidates: usize,
    /// Time between direct health checks of a node, and the limit of one.
    pub health_interval_ms: u64,
    /// Missed checks after which a node is lost.
    pub max_missed_checks: u32,
    /// Time between reports of a node on its load.
    pub load_interval_ms: u32,
    /// Time between two looks of a node for changes of its prefix cache, which are told at once: the next turn of
    /// a conversation may come as soon as an answer ends.
    pub prefix_interval_ms: u32,
    /// Pages of all nodes' prefix caches that are known at most, some 30 bytes
    /// each; a page on two nodes counts twice.
    pub max_indexed_pages: u64,
    /// Pages of one node's prefix cache that are known at most.
    pub max_indexed_pages_of_node: u64,
    /// What readers should wait at most.
    pub budgets: BudgetConfig,
    /// What is done about nodes whose roles do not fit what is asked for.
    pub balancer: BalancerMode,
    /// How patiently.
    pub balancing: BalancingConfig,
}

/// What the balancer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancerMode {
    /// Nothing.
    Off,
    /// Says which roles would be better.
    Advise,
    /// Gives nodes these roles.
    On,
}

/// When the balancer makes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalancingConfig {
    /// Between two looks.
    pub interval_ms: u64,
    /// Looks in a row that must find the same.
    pub looks: u32,
    /// Between two changes for one model.
    pub cool_down_ms: u64,
}

/// A policy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// Each node in turn.
    RoundRobin,
    /// The node with the least to do.
    LeastLoaded,
    /// The node with the least to do when what it holds of the prompt is left out.
    PrefixAware,
    /// The pair of nodes that is foretold to keep the budgets best.
    Predicted,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            policy: PolicyName::LeastLoaded,
            max_running: 1024,
            max_waiting: 1024,
            max_wait_ms: 10_000,
            node_wait_ms: 5_000,
            max_attempts: 3,
            local_prefill_below_tokens: 0,
            max_prefill_candidates: 4,
            health_interval_ms: 1_000,
            max_missed_checks: 3,
            load_interval_ms: 250,
            prefix_interval_ms: 20,
            max_indexed_pages: 10_000_000,
            max_indexed_pages_of_node: 1_000_000,
            budgets: BudgetConfig::default(),
            balancer: BalancerMode::Advise,
            balancing: BalancingConfig::default(),
        }
    }
}

impl Default for BalancingConfig {
    fn default() -> Self {
        Self { interval_ms: 5_000, looks: 6, cool_down_ms: 60_000 }
    }
}

impl BalancingConfig {
    /// Between two looks.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.max(1))
    }

    pub(crate) fn cool_down(&self) -> Duration {
        Duration::from_millis(self.cool_down_ms)
    }
}

impl CoordinatorConfig {
    /// Whether limits and budgets can work.
    ///
    /// # Errors
    /// The first one that cannot.
    pub fn validate(&self) -> Result<(), LimitsError> {
        Limits::of(self).check()
    }

    pub(crate) fn node_wait(&self) -> Duration {
        Duration::from_millis(self.node_wait_ms)
    }

    pub(crate) fn load_interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.load_interval_ms.max(1)))
    }

    /// How much is known of prefix caches.
    pub fn prefix_limits(&self) -> PrefixLimits {
        PrefixLimits { pages: self.max_indexed_pages, pages_of_node: self.max_indexed_pages_of_node }
    }

    pub(crate) fn health_interval(&self) -> Duration {
        Duration::from_millis(self.health_interval_ms.max(1))
    }
}

impl PolicyName {
    /// Whether it looks at what nodes hold of a prompt.
    pub(crate) fn knows_prefixes(self) -> bool {
        match self {
            Self::RoundRobin | Self::LeastLoaded => false,
            Self::PrefixAware | Self::Predicted => true,
        }
    }
}
