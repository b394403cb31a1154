//! How long the steps of a node take, as it has learnt from those that ran.

/// What a node says of its steps; a part is absent until enough of them have run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepModel {
    /// Steps with prompts: units are prompt tokens, and the context of one is
    /// how many tokens it attends to.
    pub prefill: Option<StepCost>,
    /// Steps in which answers go on: units are answers, and the context of one is its length.
    pub decode: Option<StepCost>,
}

/// Seconds of a step: `base + unit × units + context × contexts`. None of them is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Of a step, whatever it computes.
    pub base: f64,
    /// Of each unit.
    pub unit: f64,
    /// Of each token in the context of each unit.
    pub context: f64,
}

// === impl StepCost ===

impl StepCost {
    /// Seconds of `steps` steps that share so many units, with this sum of their contexts.
    pub fn seconds(&self, steps: f64, units: f64, contexts: f64) -> f64 {
        self.base * steps + self.unit * units + self.context * contexts
    }

    /// Whether it can be believed: what comes over the wire may be anything.
    pub fn is_sane(&self) -> bool {
        [self.base, self.unit, self.context].iter().all(|part| part.is_finite() && *part >= 0.0)
    }
}
