//! What readers should wait at most, by model and priority. Pure.

use std::time::Duration;

use baton_protocol::Budgets;
use serde::Deserialize;

/// Budgets of requests that bring none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Time to the first token.
    pub ttft_ms: u64,
    /// Time between tokens.
    pub itl_ms: u64,
    /// Whether decode nodes keep `itl_ms` for requests that bring none, by smaller batches
    /// where they must; what a request brings they always keep.
    pub kept_by_nodes: bool,
    /// Requests for which something else holds. Of the classes that a request is of, the
    /// first that names a value counts.
    pub classes: Vec<BudgetClass>,
}

/// Requests of a model, or of some priorities, or both, and their budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetClass {
    /// Name of their model; absent: any.
    pub model: Option<String>,
    /// Their least priority; absent: any.
    pub min_priority: Option<i32>,
    /// Their greatest priority; absent: any.
    pub max_priority: Option<i32>,
    /// Time to the first token.
    pub ttft_ms: Option<u64>,
    /// Time between tokens.
    pub itl_ms: Option<u64>,
    /// Whether decode nodes keep it.
    pub kept_by_nodes: Option<bool>,
}

/// What holds for a request that brings nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usual {
    pub(crate) budgets: Budgets,
    pub(crate) kept_by_nodes: bool,
}

// === impl BudgetConfig ===

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { ttft_ms: 1_000, itl_ms: 50, kept_by_nodes: false, classes: Vec::new() }
    }
}

impl BudgetConfig {
    /// What holds for a request of this model and priority.
    pub(crate) fn of(&self, model: &str, priority: i32) -> Usual {
        let classes = || self.classes.iter().filter(|class| class.has(model, priority));
        let ms = |named: Option<u64>, usual| Duration::from_millis(named.unwrap_or(usual));
        Usual {
            budgets: Budgets {
                ttft: ms(classes().find_map(|class| class.ttft_ms), self.ttft_ms),
                itl: ms(classes().find_map(|class| class.itl_ms), self.itl_ms),
            },
            kept_by_nodes: classes().find_map(|class| class.kept_by_nodes).unwrap_or(self.kept_by_nodes),
        }
    }

    /// Every time that is named somewhere, with its name.
    pub(crate) fn times(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let classes = self.classes.iter();
        let of_class = |class: &BudgetClass| [("ttft_ms", class.ttft_ms), ("itl_ms", class.itl_ms)];
        let named = classes.flat_map(of_class).filter_map(|(name, ms)| Some((name, ms?)));
        [("ttft_ms", self.ttft_ms), ("itl_ms", self.itl_ms)].into_iter().chain(named)
    }
}

// === impl BudgetClass ===

impl BudgetClass {
    fn has(&self, model: &str, priority: i32) -> bool {
        self.model.as_deref().is_none_or(|own| own == model)
            && self.min_priority.is_none_or(|least| priority >= least)
            && self.max_priority.is_none_or(|most| priority <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_of_a_request_that_names_a_value_counts() {
        let of_model = |model: &str| BudgetClass { model: Some(model.to_owned()), ..BudgetClass::default() };
        let config = BudgetConfig {
            classes: vec![
                BudgetClass { min_priority: Some(5), ttft_ms: Some(200), ..of_model("small") },
                BudgetClass { max_priority: Some(-1), ttft_ms: Some(60_000), ..BudgetClass::default() },
                BudgetClass {
                    ttft_ms: Some(400),
                    itl_ms: Some(20),
                    kept_by_nodes: Some(true),
                    ..of_model("small")
                },
            ],
            ..BudgetConfig::default()
        };
        for (model, priority, ttft, itl, kept_by_nodes) in [
            ("small", 5, 200, 20, true),
            ("small", 0, 400, 20, true),
            ("small", -1, 60_000, 20, true),
            ("large", 9, 1_000, 50, false),
            ("large", -100, 60_000, 50, false),
        ] {
            let (ttft, itl) = (Duration::from_millis(ttft), Duration::from_millis(itl));
            let usual = Usual { budgets: Budgets { ttft, itl }, kept_by_nodes };
            assert_eq!(config.of(model, priority), usual, "{model} {priority}");
        }
        assert_eq!(config.times().map(|(_, ms)| ms).max(), Some(60_000));
    }
}
