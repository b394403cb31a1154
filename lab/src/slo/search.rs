//! Which rate to try next.

use serde::{Deserialize, Serialize};

/// A search for the highest rate that holds: by a factor up or down until one
/// holds and one does not, then by halving the ratio between them.
#[derive(Clone, Debug)]
pub struct Search {
    next: f64,
    /// Between rates until both ends are found, above 1.
    factor: f64,
    /// The search ends when the rates on both sides are closer than this: 0.1 is a tenth.
    precision: f64,
    bracket: Bracket,
    trials: usize,
}

/// Between which rates a server stops to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bracket {
    /// The highest rate that held; none: none did.
    pub held: Option<f64>,
    /// The lowest that did not, above it; none: all did.
    pub missed: Option<f64>,
}

// === impl Search ===

impl Search {
    /// Begins with this rate and goes on by this factor; tries so many at most.
    pub fn new((first, factor): (f64, f64), precision: f64, trials: usize) -> Self {
        Self { next: first, factor, precision, bracket: Bracket::default(), trials }
    }

    /// The rate to try; none: it is known well enough.
    pub fn next(&self) -> Option<f64> {
        let is_close = match self.bracket {
            Bracket { held: Some(held), missed: Some(missed) } => missed <= held * (1.0 + self.precision),
            _ => false,
        };
        (!is_close && self.trials > 0).then_some(self.next)
    }

    /// What came of the rate that was to be tried.
    pub fn note(&mut self, holds: bool) {
        let rate = self.next;
        self.trials -= 1;
        match holds {
            true => self.bracket.held = Some(rate),
            false => self.bracket.missed = Some(rate),
        }
        self.next = match self.bracket {
            Bracket { held: Some(held), missed: Some(missed) } => rounded((held * missed).sqrt()),
            Bracket { held: Some(held), missed: None } => rounded(held * self.factor),
            Bracket { held: None, .. } => rounded(rate / self.factor),
        };
    }

    /// What is known.
    pub fn bracket(&self) -> Bracket {
        self.bracket
    }
}

/// To three digits, so that sides of one search meet at the same rates.
fn rounded(rate: f64) -> f64 {
    let power = 10_f64.powf(rate.log10().floor() - 2.0);
    (rate / power).round() * power
}
