//! How much a server can be asked before too many wait too long.
//!
//! - [`Search`]: which rate to try next
//! - [`SloFile`]: what came of searches; [`Side`]: of one of them

mod search;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::search::{Bracket, Search};
use crate::{
    budgets::Budgets,
    report::{FileError, Measured, load_json, save_json},
};

/// Searches over the same traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SloFile {
    /// Of this file's form: 1.
    pub format: u32,
    /// What was run, for people.
    pub command: String,
    /// Share of requests that must keep the budgets.
    pub target: f64,
    /// What requests should keep.
    pub budgets: Budgets,
    /// Who was searched.
    pub sides: Vec<Side>,
}

/// One server, or one way to set a cluster up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// Settings that make it differ.
    pub settings: Vec<String>,
    /// Rates that were tried, in their order.
    pub trials: Vec<Trial>,
    /// Between which rates it stops to hold.
    pub bracket: Bracket,
}

/// A rate that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Requests a second, offered.
    pub rate: f64,
    /// The repeats.
    pub runs: Vec<Measured>,
}

const FORMAT: u32 = 1;

// === impl SloFile ===

impl SloFile {
    /// Without sides.
    pub fn new(command: String, target: f64, budgets: Budgets) -> Self {
        Self { format: FORMAT, command, target, budgets, sides: Vec::new() }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        save_json(path, self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let found: Self = load_json(path)?;
        if found.format != FORMAT {
            return Err(FileError::Version { path: path.to_owned(), found: found.format });
        }
        Ok(found)
    }

    /// The highest rate at which every side was tried and held; none: there is none.
    pub fn common_rate(&self) -> Option<f64> {
        let rates = self.sides.first()?.held(self.target);
        let everywhere = |rate: &f64| self.sides.iter().all(|side| side.held(self.target).contains(rate));
        rates.into_iter().filter(everywhere).max_by(f64::total_cmp)
    }
}

// === impl Side ===

impl Side {
    fn held(&self, target: f64) -> Vec<f64> {
        self.trials.iter().filter(|trial| trial.attainment() >= target).map(|trial| trial.rate).collect()
    }

    /// What was measured at this rate.
    pub fn at(&self, rate: f64) -> Option<&Trial> {
        self.trials.iter().find(|trial| trial.rate == rate)
    }

    /// Its trials by rate.
    pub fn by_rate(&self) -> Vec<&Trial> {
        let mut trials: Vec<&Trial> = self.trials.iter().collect();
        trials.sort_by(|one, other| one.rate.total_cmp(&other.rate));
        trials
    }
}

// === impl Trial ===

impl Trial {
    /// The middle of the repeats; of an even number, the lower.
    pub fn attainment(&self) -> f64 {
        self.middle(|run| run.summary.all.attainment)
    }

    /// The middle of any figure of the repeats.
    pub fn middle(&self, figure: impl Fn(&Measured) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get((values.len().max(1) - 1) / 2).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests;
