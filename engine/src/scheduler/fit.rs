//! A line through steps: seconds over what a step computed, learnt one step at a time.
//!
//! Least squares with forgetting. What is kept are the sums of the normal
//! equations, so that each step costs the same and coefficients can be solved
//! for under the condition that none is negative. Errors count relative to the
//! step, since a step of a second is not a thousand times as
//! important as one of a millisecond, and steps far off what was expected
//! (a machine that paused, a first step that warms up) count as little as
//! Huber's loss lets them.

use baton_protocol::StepCost;

/// Coefficients of base, unit and context.
const PARTS: usize = 3;
type Vector = [f64; PARTS];

/// Weight of what is known when a step is added: about 250 steps are remembered.
const KEPT: f64 = 0.996;
/// Steps before anything is said.
const ENOUGH: u32 = 4;
/// Steps before one can be an outlier.
const WARM: u32 = 12;
/// Relative errors beyond so many usual ones are an outlier's.
const USUAL: f64 = 3.0;
/// Share of the newest error in the usual one.
const NEWEST: f64 = 0.1;
/// Relative errors that are always usual: timers are no better.
const LEAST_USUAL: f64 = 0.02;
/// Pull towards what was believed before, where steps do not tell parts apart; of a
/// part that is less likely to have the time it is stronger.
const PULL: f64 = 1e-3;

/// See the module's description.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    /// How little of a step's time its base, units and context are believed to take, relative
    /// to each other, before steps have told.
    doubts: Vector,
    /// Weighted sums of the products of parts, and of parts and seconds.
    products: [Vector; PARTS],
    sums: Vector,
    believed: Vector,
    /// Mean relative error of late.
    usual_error: f64,
    steps: u32,
}

// === impl Fit ===

impl Fit {
    pub fn new(doubts: Vector) -> Self {
        let none = [0.0; PARTS];
        Self { doubts, products: [none; PARTS], sums: none, believed: none, usual_error: 0.0, steps: 0 }
    }

    /// A step with so many units and this sum of their contexts took `seconds`.
    pub fn learn(&mut self, units: f64, contexts: f64, seconds: f64) {
        if !(seconds > 0.0 && seconds.is_finite()) {
            return;
        }
        let step = [1.0, units, contexts];
        let expected = dot(&self.believed, &step);
        // A step that took much longer, or one of which too little was expected,
        // must not count for more by that.
        let scale = expected.max(seconds);
        let weight = if self.steps < ENOUGH { 1.0 } else { self.trust((seconds - expected).abs() / scale) };
        let weight = weight / (scale * scale);
        for (row, part) in self.products.iter_mut().zip(step) {
            row.iter_mut().zip(step).for_each(|(sum, other)| *sum = *sum * KEPT + weight * part * other);
        }
        self.sums.iter_mut().zip(step).for_each(|(sum, part)| *sum = *sum * KEPT + weight * part * seconds);
        self.steps = self.steps.saturating_add(1);
        self.believed = self.solve();
    }

    /// What it has come to, once it has seen enough.
    pub fn cost(&self) -> Option<StepCost> {
        let [base, unit, context] = self.believed;
        (self.steps >= ENOUGH).then_some(StepCost { base, unit, context })
    }

    /// How much a step with this relative error counts. Errors that stay large become usual.
    fn trust(&mut self, error: f64) -> f64 {
        let limit = USUAL * self.usual_error.max(LEAST_USUAL);
        let (taken, weight) =
            if error <= limit || self.steps < WARM { (error, 1.0) } else { (limit, limit / error) };
        self.usual_error += NEWEST * (taken - self.usual_error);
        weight
    }

    /// The best coefficients that are not negative: the best of those with some of them zero.
    fn solve(&self) -> Vector {
        let (mut products, mut sums) = (self.products, self.sums);
        for part in 0..PARTS {
            let pull = PULL * self.doubts[part] * products[part][part];
            products[part][part] += pull;
            sums[part] += pull * self.believed[part];
        }
        let loss = |parts: &Vector| {
            let product: Vector = std::array::from_fn(|row| dot(&products[row], parts));
            dot(&product, parts) - 2.0 * dot(&sums, parts)
        };
        (0..1u32 << PARTS)
            .filter_map(|free| solve_for(free, products, sums))
            .filter(|parts| parts.iter().all(|part| *part >= 0.0))
            .min_by(|one, other| loss(one).total_cmp(&loss(other)))
            .unwrap_or(self.believed)
    }
}

/// Solves for the parts whose bits are set; the others are zero. None where they cannot be told apart.
fn solve_for(free: u32, mut rows: [Vector; PARTS], mut sums: Vector) -> Option<Vector> {
    for part in (0..PARTS).filter(|part| free & 1 << part == 0) {
        rows.iter_mut().for_each(|row| row[part] = 0.0);
        (rows[part], sums[part]) = ([0.0; PARTS], 0.0);
        rows[part][part] = 1.0;
    }
    let sizes: Vector = std::array::from_fn(|part| rows[part][part]);
    for pivot in 0..PARTS {
        if rows[pivot][pivot] <= 1e-12 * sizes[pivot] {
            return None;
        }
        for below in pivot + 1..PARTS {
            let factor = rows[below][pivot] / rows[pivot][pivot];
            let (top, sum) = (rows[pivot], sums[pivot]);
            rows[below].iter_mut().zip(top).for_each(|(cell, above)| *cell -= factor * above);
            sums[below] -= factor * sum;
        }
    }
    let mut parts = [0.0; PARTS];
    for row in (0..PARTS).rev() {
        parts[row] = (sums[row] - dot(&rows[row], &parts)) / rows[row][row];
    }
    parts.iter().all(|part| part.is_finite()).then_some(parts)
}

fn dot(one: &Vector, other: &Vector) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests;
