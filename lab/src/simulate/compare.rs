//! What was simulated beside what was measured.

use crate::{measure::Figures, report::Table};

/// A figure, as measured once or several times and as simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Its name.
    pub name: &'static str,
    /// Each run.
    pub measured: Vec<f64>,
    /// Each simulated run of the same traffic.
    pub simulated: Vec<f64>,
    /// The error that is borne; the runs' own spread is, too, where it is larger.
    pub bound: f64,
}

/// A figure's name, the error that it may have, and where it stands.
type Compares = (&'static str, f64, fn(&Figures) -> f64);

const FIGURES: [Compares; 5] = [
    ("TTFT p50, ms", 0.1, |of| 1e3 * of.ttft.p50),
    ("TTFT p99, ms", 0.2, |of| 1e3 * of.ttft.p99),
    ("ITL p50, ms", 0.1, |of| 1e3 * of.itl.p50),
    ("ITL p99, ms", 0.2, |of| 1e3 * of.itl.p99),
    ("goodput, requests/s", 0.1, |of| of.goodput),
];

/// Of runs of the same traffics, in the same order.
pub fn compare(measured: &[&Figures], simulated: &[&Figures]) -> Vec<Compared> {
    let of = |(name, bound, figure): Compares| Compared {
        name,
        measured: measured.iter().map(|of| figure(of)).collect(),
        simulated: simulated.iter().map(|of| figure(of)).collect(),
        bound,
    };
    FIGURES.into_iter().map(of).collect()
}

/// A row for each figure.
pub fn table(compared: &[Compared]) -> Table {
    let mut table =
        Table::new(["figure", "measured", "simulated", "error", "spread of repeats", "borne", "holds"]);
    for one in compared {
        let percent = |share: f64| format!("{:.1} %", 1e2 * share);
        table.push(vec![
            one.name.to_owned(),
            format!("{:.3}", mean(&one.measured)),
            format!("{:.3}", mean(&one.simulated)),
            percent(one.error()),
            percent(one.spread()),
            percent(one.borne()),
            if one.holds() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

// === impl Compared ===

impl Compared {
    /// How far the simulated mean is from the measured one, as a share of it.
    pub fn error(&self) -> f64 {
        let (measured, simulated) = (mean(&self.measured), mean(&self.simulated));
        (simulated - measured).abs() / measured.abs().max(f64::MIN_POSITIVE)
    }

    /// How far measured runs are from each other, as a share of their mean.
    pub fn spread(&self) -> f64 {
        let most = self.measured.iter().copied().fold(f64::MIN, f64::max);
        let least = self.measured.iter().copied().fold(f64::MAX, f64::min);
        (most - least).max(0.0) / mean(&self.measured).abs().max(f64::MIN_POSITIVE)
    }

    /// The error that is borne.
    pub fn borne(&self) -> f64 {
        self.bound.max(self.spread())
    }

    /// Whether the error is no larger.
    pub fn holds(&self) -> bool {
        self.error() <= self.borne()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_bound_and_spread_is_borne() {
        let of = |measured: &[f64], simulated: f64| Compared {
            name: "x",
            measured: measured.to_vec(),
            simulated: vec![simulated],
            bound: 0.1,
        };
        assert!(of(&[10.0, 10.0], 10.9).holds());
        assert!(!of(&[10.0, 10.0], 11.5).holds());
        assert!(of(&[9.0, 11.0], 11.5).holds());
        assert!(table(&[of(&[9.0, 11.0], 11.5)]).to_string().contains("15.0 %"));
    }
}
