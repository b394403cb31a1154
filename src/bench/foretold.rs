//! How far what was measured of requests is from what the coordinator foretold
//! of them, from the histograms of its ratios.

use anyhow::{Context, Result};

/// Measured over foretold: how many ratios are at or below each bound, of all that were taken in.
#[derive(Clone, Debug, Default)]
pub(super) struct Ratios {
    /// Bounds ascending, the last one infinite.
    below: Vec<(f64, f64)>,
}

/// Histograms of times to first token and of times between tokens.
pub(super) const TTFT: &str = "baton_prediction_ttft_ratio";
pub(super) const ITL: &str = "baton_prediction_itl_ratio";

/// Between errors that are told apart.
const STEP: f64 = 0.005;
/// Errors beyond this are told as this.
const MOST: f64 = 4.0;

/// The page of metrics of the server at `url`.
pub(super) async fn metrics(url: &str) -> Result<String> {
    let http = crate::client::http(None)?;
    Ok(http.get(format!("{url}/metrics")).send().await?.error_for_status()?.text().await?)
}

// === impl Ratios ===

impl Ratios {
    /// Takes in the histogram of this name of a page of metrics.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn take(&mut self, page: &str, name: &str) -> Result<()> {
        let bucket = |line: &str| -> Option<(f64, f64)> {
            let (bound, count) =
                line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        let new: Vec<_> = page.lines().filter_map(bucket).collect();
        anyhow::ensure!(!new.is_empty(), "the server has no metric {name}");
        if self.below.is_empty() {
            self.below = new.iter().map(|(bound, _)| (*bound, 0.0)).collect();
        }
        self.below.iter_mut().zip(new).for_each(|(all, (_, count))| all.1 += count);
        Ok(())
    }

    /// The error |ratio - 1| that this share of all ratios does not exceed,
    /// ratios being spread evenly between bounds.
    ///
    /// # Errors
    /// When nothing was foretold.
    pub(super) fn error(&self, share: f64) -> Result<f64> {
        let all = self.below.last().map_or(0.0, |(_, count)| *count);
        anyhow::ensure!(all > 0.0, "nothing was foretold");
        let within = |error: f64| (self.at(1.0 + error) - self.at(1.0 - error)) / all;
        let mut errors = (0..).map(|step| f64::from(step) * STEP);
        errors.find(|error| within(*error) >= share || *error >= MOST).context("no error is enough")
    }

    /// Ratios at or below this one.
    fn at(&self, ratio: f64) -> f64 {
        let mut before = (0.0, 0.0);
        for &(bound, count) in &self.below {
            if ratio <= bound {
                let part = if bound.is_finite() { (ratio - before.0) / (bound - before.0) } else { 0.0 };
                return before.1 + part * (count - before.1);
            }
            before = (bound, count);
        }
        before.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: [u32; 4]) -> Ratios {
        let [low, one, high, all] = counts;
        let page = format!(
            "# TYPE x histogram\nx_sum 3\nx_bucket{{le=\"0.8\"}} {low}\nx_bucket{{le=\"1.0\"}} {one}\n\
             x_bucket{{le=\"1.2\"}} {high}\nx_bucket{{le=\"+Inf\"}} {all}\nother_bucket{{le=\"0.8\"}} 9\n"
        );
        let mut ratios = Ratios::default();
        ratios.take(&page, "x").unwrap();
        ratios.take(&page, "x").unwrap();
        ratios
    }

    #[test]
    fn errors_are_counted_on_both_sides_of_one() {
        let half = |ratios: &Ratios, share| ratios.error(share).unwrap();
        assert!((half(&of([0, 50, 100, 100]), 0.9) - 0.18).abs() < STEP);
        assert!((half(&of([0, 0, 100, 100]), 0.5) - 0.1).abs() < STEP);
        // One tenth lies far above, where no bound is.
        assert!((half(&of([0, 45, 90, 100]), 0.9) - 0.2).abs() < STEP);
        assert!(half(&of([0, 45, 90, 100]), 0.95) >= MOST);
    }

    #[test]
    fn nothing_foretold_is_no_error_of_nought() {
        assert!(of([0, 0, 0, 0]).error(0.9).is_err());
        assert!(Ratios::default().take("x_sum 3\n", "x").is_err());
    }
}
