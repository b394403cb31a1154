//! A line for each model: a model that is slow, or whose nodes are gone, takes no places of another.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Limits, QueueStatus, admission::Admission, retries::Retries};

/// The lines, by model. Only models that nodes have served are entered, so that there are few.
#[derive(Debug)]
pub(crate) struct Lines(Mutex<State>);

/// Where requests for one model wait, and how often they are tried again.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) admission: Arc<Admission>,
    pub(crate) retries: Arc<Retries>,
}

#[derive(Debug)]
struct State {
    /// Of each line.
    limits: Limits,
    by_model: BTreeMap<String, Line>,
}

// === impl Lines ===

impl Lines {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Mutex::new(State { limits, by_model: BTreeMap::new() }))
    }

    /// The line of a model that some node has announced.
    pub(crate) fn of(&self, model: &str) -> Line {
        let State { limits, by_model } = &mut *self.0.lock();
        if let Some(line) = by_model.get(model) {
            return line.clone();
        }
        let retries = Arc::new(Retries::new(Instant::now()));
        let line = Line { admission: Admission::new(limits), retries };
        by_model.insert(model.to_owned(), line.clone());
        line
    }

    /// Other limits from now on.
    pub(crate) fn set(&self, limits: &Limits) {
        let mut state = self.0.lock();
        state.limits = limits.clone();
        state.by_model.values().for_each(|line| line.admission.set(limits));
    }

    /// Who runs and who waits, by model.
    pub(crate) fn status(&self) -> BTreeMap<String, QueueStatus> {
        let state = self.0.lock();
        state.by_model.iter().map(|(model, line)| (model.clone(), line.admission.status())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{CoordinatorConfig, queue::Claim};

    #[tokio::test]
    async fn a_full_line_leaves_those_of_other_models_alone() {
        let limits = Limits { max_running: 1, max_waiting: 0, ..Limits::of(&CoordinatorConfig::default()) };
        let lines = Lines::new(limits.clone());
        let due = Instant::now() + Duration::from_secs(60);
        let claim = || Claim { tenant: String::new(), priority: 0, due, tokens: 1 };
        let held = lines.of("a").admission.admit(claim(), due).await.unwrap();
        assert!(lines.of("a").admission.admit(claim(), due).await.is_err());
        drop(lines.of("b").admission.admit(claim(), due).await.unwrap());
        let running = || lines.status().into_values().map(|line| line.running).collect::<Vec<_>>();
        assert_eq!(running(), [1, 0]);
        lines.set(&Limits { max_running: 2, ..limits });
        let more = lines.of("a").admission.admit(claim(), due).await.unwrap();
        let other = lines.of("c");
        let both = [
            other.admission.admit(claim(), due).await.unwrap(),
            other.admission.admit(claim(), due).await.unwrap(),
        ];
        assert_eq!(running(), [2, 0, 2]);
        drop((held, more, both));
        assert_eq!(running(), [0, 0, 0]);
    }
}
