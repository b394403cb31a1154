//! What may be changed while the coordinator runs.

use crate::{BudgetConfig, CoordinatorConfig};

/// Limits in force, and how often they were changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Counts changes; a change names the one that it is based on.
    pub revision: u64,
    /// Requests of a model running at once.
    pub max_running: usize,
    /// Requests of a model waiting for a place beyond those.
    pub max_waiting: usize,
    /// How long a request may wait for a place.
    pub max_wait_ms: u64,
    /// What readers should wait at most.
    pub budgets: BudgetConfig,
}

/// Why limits stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Somebody else changed them meanwhile.
    #[error("limits are at revision {now}, not {based_on}")]
    Stale {
        /// The revision that the change was made for.
        based_on: u64,
        /// The one in force.
        now: u64,
    },
    /// A value that cannot work.
    #[error("{name} must be {least} to {most}")]
    Range {
        /// Which one.
        name: &'static str,
        /// Smallest value.
        least: u64,
        /// Greatest value.
        most: u64,
    },
}

/// A day.
const MOST_MS: u64 = 86_400_000;
const MOST_REQUESTS: u64 = 1_000_000;

// === impl Limits ===

impl Limits {
    /// At first, by the configuration.
    pub fn of(config: &CoordinatorConfig) -> Self {
        let CoordinatorConfig { max_running, max_waiting, max_wait_ms, .. } = *config;
        Self { revision: 1, max_running, max_waiting, max_wait_ms, budgets: config.budgets.clone() }
    }

    /// Takes the place of `self`, whose revision it must name, as the next revision.
    ///
    /// # Errors
    /// When it names another one, or a value is out of range.
    pub(crate) fn replace(&mut self, wanted: Self) -> Result<(), LimitsError> {
        if wanted.revision != self.revision {
            return Err(LimitsError::Stale { based_on: wanted.revision, now: self.revision });
        }
        wanted.check()?;
        *self = Self { revision: self.revision + 1, ..wanted };
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), LimitsError> {
        let values = [
            ("max_running", self.max_running as u64, 1, MOST_REQUESTS),
            ("max_waiting", self.max_waiting as u64, 0, MOST_REQUESTS),
            ("max_wait_ms", self.max_wait_ms, 0, MOST_MS),
        ];
        let budgets = self.budgets.times().map(|(name, ms)| (name, ms, 1, MOST_MS));
        match values
            .into_iter()
            .chain(budgets)
            .find(|(_, value, least, most)| !(*least..=*most).contains(value))
        {
            Some((name, _, least, most)) => Err(LimitsError::Range { name, least, most }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BudgetClass;

    #[test]
    fn a_change_is_based_on_the_last_one_and_within_range() {
        let mut limits = Limits::of(&CoordinatorConfig::default());
        let first = limits.clone();
        limits.replace(Limits { max_running: 7, ..first.clone() }).unwrap();
        assert_eq!((limits.revision, limits.max_running), (2, 7));
        let stale = limits.replace(Limits { max_running: 9, ..first });
        assert_eq!(stale, Err(LimitsError::Stale { based_on: 1, now: 2 }));
        let none = limits.replace(Limits { max_running: 0, ..limits.clone() });
        assert!(matches!(none, Err(LimitsError::Range { name: "max_running", .. })));
        let never = BudgetClass { itl_ms: Some(0), ..BudgetClass::default() };
        for budgets in [
            BudgetConfig { itl_ms: 0, ..BudgetConfig::default() },
            BudgetConfig { classes: vec![never], ..BudgetConfig::default() },
        ] {
            let never = limits.replace(Limits { budgets, ..limits.clone() });
            assert!(matches!(never, Err(LimitsError::Range { name: "itl_ms", .. })));
        }
        assert_eq!((limits.revision, limits.max_running), (2, 7));
    }
}
