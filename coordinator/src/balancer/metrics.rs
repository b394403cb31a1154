//! What the balancer foretells and does, for dashboards and autoscalers.

use std::sync::atomic::AtomicU64;

use baton_protocol::Role;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Advice;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleOf {
    model: String,
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetOf {
    model: String,
    budget: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gained {
    role: &'static str,
}

/// Handles to the balancer's metrics; clones count into the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct BalancerMetrics {
    wanted: Family<RoleOf, Gauge>,
    attained: Family<BudgetOf, Gauge<f64, AtomicU64>>,
    changes: Family<Gained, Counter>,
    office: Gauge,
}

// === impl BalancerMetrics ===

impl BalancerMetrics {
    pub(crate) fn register(self, registry: &mut Registry) {
        registry.register("wanted_nodes", "Nodes of a role that would keep the budgets", self.wanted);
        registry.register(
            "predicted_attainment_ratio",
            "Share of requests that the nodes of now are foretold to keep within a budget",
            self.attained,
        );
        registry.register(
            "balancer_office",
            "Whether this coordinator is the one that changes roles",
            self.office,
        );
        registry.register("balancer_changes", "Roles that the balancer has changed", self.changes);
    }

    pub(crate) fn advised(&self, model: &str, advice: &Advice) {
        for (role, nodes) in [(Role::Prefill, advice.wanted.prefill), (Role::Decode, advice.wanted.decode)] {
            let label = RoleOf { model: model.to_owned(), role: role.as_str() };
            self.wanted.get_or_create(&label).set(i64::try_from(nodes).unwrap_or(i64::MAX));
        }
        for (budget, share) in [("ttft", advice.outlook.ttft), ("itl", advice.outlook.itl)] {
            self.attained.get_or_create(&BudgetOf { model: model.to_owned(), budget }).set(share);
        }
    }

    /// Nothing is advised any more: an autoscaler that sees no value changes nothing.
    pub(crate) fn withdrawn(&self, model: &str) {
        for role in [Role::Prefill, Role::Decode] {
            self.wanted.remove(&RoleOf { model: model.to_owned(), role: role.as_str() });
        }
        for budget in ["ttft", "itl"] {
            self.attained.remove(&BudgetOf { model: model.to_owned(), budget });
        }
    }

    /// Whether this is the coordinator that makes changes.
    pub(crate) fn office(&self, held: bool) {
        self.office.set(held.into());
    }

    /// A node gained this role.
    pub(crate) fn changed(&self, role: Role) {
        self.changes.get_or_create(&Gained { role: role.as_str() }).inc();
    }
}
