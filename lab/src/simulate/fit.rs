//! Machines from measured runs: what steps cost, by the phases and gaps that clients saw.
//!
//! Prompts are fitted to their `prefill` phase over the tokens that were computed; answers to their
//! gaps over how many came at once on each decode node; what is left of first tokens is the way
//! to and fro. Good where prompts and answers have nodes of their own and runs do not queue much;
//! a node's own step model, which it publishes, is better where it can be had.

use std::collections::BTreeMap;

use baton_protocol::StepCost;

use super::{ClusterShape, LAYER_GROUPS, Link, Machine};
use crate::{
    measure::{Record, quantile},
    report::Measured,
};

/// What was fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// Of steps with prompts.
    pub prefill: StepCost,
    /// Of steps in which answers go on.
    pub decode: StepCost,
    /// Seconds of a first token that are none of a node's.
    pub front: f64,
    /// Seconds from a first token until its answer may go on, beside what KV takes to travel.
    pub handoff: f64,
}

/// Why a run cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// Too few requests with times of their own.
    #[error(
        "a run to fit needs {wanted} answers with phases (`Server-Timing`) and {wanted} gaps, not {answers} and {gaps}"
    )]
    TooFew {
        /// So many.
        wanted: usize,
        /// Answers with phases.
        answers: usize,
        /// Gaps.
        gaps: usize,
    },
    /// Prompts and answers beside each other on a node.
    #[error("only runs of a split cluster can be fitted: elsewhere prompts and answers share steps")]
    NotSplit,
}

/// Answers, and gaps, at least.
const ENOUGH: usize = 20;
/// Points farther from the line than so many times the usual error are left out.
const FAR: f64 = 4.0;
/// So many rounds of that.
const ROUNDS: usize = 4;

impl Fitted {
    /// From runs on such a cluster. `machine` says how steps are filled, and how fast KV and words
    /// travel.
    ///
    /// # Errors
    /// When there is too little to see.
    pub fn of(runs: &[Measured], cluster: &ClusterShape, machine: &Machine) -> Result<Self, FitError> {
        if cluster.local > 0 || cluster.prefill == 0 {
            return Err(FitError::NotSplit);
        }
        let answered = || runs.iter().flat_map(|run| &run.run.records).filter(|record| record.is_answered());
        let prompts: Vec<Point> =
            answered().filter_map(|record| prompt(record, machine.limits.max_batch_tokens)).collect();
        let gaps: Vec<Point> = runs.iter().flat_map(|run| gaps(&run.run.records, cluster.decode)).collect();
        if prompts.len() < ENOUGH || gaps.len() < ENOUGH {
            return Err(FitError::TooFew { wanted: ENOUGH, answers: prompts.len(), gaps: gaps.len() });
        }
        let around = |record: &Record| {
            let phases = record.phases?;
            Some(record.ttft? - (phases.queue_ms + phases.prefill_ms) / 1e3 - 2.0 * machine.link.hop)
        };
        let waits = |record: &Record| {
            let tokens = record.prompt_tokens?.saturating_sub(record.cached_tokens.unwrap_or(0));
            Some(record.phases?.wait_ms / 1e3 - machine.transfer(tokens) / LAYER_GROUPS)
        };
        Ok(Self {
            prefill: line(&prompts),
            decode: line(&middles(&gaps)),
            front: median(answered().filter_map(around)).max(0.0),
            handoff: median(answered().filter_map(waits)).max(0.0),
        })
    }

    /// The machine with these figures in place of its own.
    #[must_use]
    pub fn on(&self, machine: Machine) -> Machine {
        let mut machine = Machine { prefill: self.prefill, decode: self.decode, ..machine };
        machine.link = Link { handoff: self.handoff, front: self.front, ..machine.link };
        machine
    }
}

/// Seconds of `steps` steps with so many units.
#[derive(Clone, Copy, Debug)]
struct Point {
    steps: f64,
    units: f64,
    seconds: f64,
}

fn prompt(record: &Record, step_tokens: usize) -> Option<Point> {
    let computed = record.prompt_tokens?.checked_sub(record.cached_tokens.unwrap_or(0))?.max(1);
    let seconds = record.phases?.prefill_ms / 1e3;
    let steps = computed.div_ceil(step_tokens.max(1)) as f64;
    (seconds > 0.0).then_some(Point { steps, units: computed as f64, seconds })
}

/// Gaps, each with how many answers went on then on each of so many nodes. An answer's first gap
/// holds the end of its transfer, and is left out.
fn gaps(records: &[Record], nodes: usize) -> Vec<Point> {
    let mut changes: Vec<(f64, f64)> = Vec::new();
    for record in records.iter().filter(|record| record.is_answered()) {
        let Some(ttft) = record.ttft else { continue };
        changes.extend([(record.intended + ttft, 1.0), (record.end, -1.0)]);
    }
    changes.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut at_once = 0.0;
    let levels: Vec<(f64, f64)> = changes
        .into_iter()
        .map(|(at, by)| {
            at_once += by;
            (at, at_once)
        })
        .collect();
    let level = |at: f64| {
        let next = levels.partition_point(|(from, _)| *from <= at);
        levels.get(next.saturating_sub(1)).map_or(1.0, |(_, level)| level.max(1.0))
    };
    let mut points = Vec::new();
    for record in records.iter().filter(|record| record.is_answered()) {
        let Some(ttft) = record.ttft else { continue };
        let mut at = record.intended + ttft;
        for (index, &gap) in record.gaps.iter().enumerate() {
            let seconds = f64::from(gap);
            if index > 0 && seconds > 0.0 {
                let units = (level(at + seconds / 2.0) / nodes.max(1) as f64).max(1.0);
                points.push(Point { steps: 1.0, units, seconds });
            }
            at += seconds;
        }
    }
    points
}

/// The middle of the gaps with as many answers at once, as often as there are such: what came
/// together on the way has hardly a gap between, and the next one is the longer for it.
fn middles(gaps: &[Point]) -> Vec<Point> {
    let mut levels: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for gap in gaps {
        levels.entry(gap.units.round() as u64).or_default().push(gap.seconds);
    }
    let middle = |(units, seconds): (u64, Vec<f64>)| {
        let point = Point { steps: 1.0, units: units as f64, seconds: median(seconds.iter().copied()) };
        std::iter::repeat_n(point, seconds.len())
    };
    levels.into_iter().flat_map(middle).collect()
}

/// The line `base × steps + unit × units` through points, by relative errors, without those far off.
fn line(points: &[Point]) -> StepCost {
    let mut kept = points.to_vec();
    let mut cost = least_squares(&kept);
    for _ in 0..ROUNDS {
        let error = |point: &Point| {
            let told = cost.seconds(point.steps, point.units, 0.0);
            (point.seconds - told).abs() / point.seconds.max(told)
        };
        let usual = median(points.iter().map(error)).max(0.01);
        kept = points.iter().filter(|point| error(point) <= FAR * usual).copied().collect();
        cost = least_squares(&kept);
    }
    cost
}

/// The best that is not negative.
fn least_squares(points: &[Point]) -> StepCost {
    let (mut ss, mut su, mut uu, mut sy, mut uy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for Point { steps, units, seconds } in points {
        let weight = 1.0 / (seconds * seconds);
        ss += weight * steps * steps;
        su += weight * steps * units;
        uu += weight * units * units;
        sy += weight * steps * seconds;
        uy += weight * units * seconds;
    }
    let determinant = ss * uu - su * su;
    let (base, unit) = ((sy * uu - uy * su) / determinant, (uy * ss - sy * su) / determinant);
    // Points of one size tell the two apart no better than this.
    let is_clear = determinant > 1e-9 * ss * uu;
    match (is_clear && base >= 0.0, is_clear && unit >= 0.0) {
        (true, true) => StepCost { base, unit, context: 0.0 },
        (false, true) => StepCost { base: 0.0, unit: uy / uu, context: 0.0 },
        _ => StepCost { base: sy / ss, unit: 0.0, context: 0.0 },
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_found_among_points_far_off(base in 1e-4f64..1e-2, unit in 1e-6f64..1e-3, off in 0usize..10) {
            let points: Vec<Point> = (1..100usize)
                .map(|at| {
                    let units = (at * 37 % 300 + 1) as f64;
                    let seconds = base + unit * units;
                    Point { steps: 1.0, units, seconds: if at % 10 == off { 9.0 * seconds } else { seconds } }
                })
                .collect();
            let cost = line(&points);
            for units in [1.0, 100.0, 300.0] {
                let right = base + unit * units;
                prop_assert!((cost.seconds(1.0, units, 0.0) / right - 1.0).abs() < 0.05, "{cost:?}");
            }
        }
    }

    #[test]
    fn tokens_that_come_together_do_not_make_steps_short() {
        let gap = |at: usize, units: f64| {
            let step = 2e-3 + 5e-4 * units;
            Point { steps: 1.0, units, seconds: if at.is_multiple_of(5) { 1e-6 } else { step } }
        };
        let gaps: Vec<Point> = (0..400).map(|at| gap(at, (at / 50 + 1) as f64)).collect();
        let cost = line(&middles(&gaps));
        assert!((cost.base - 2e-3).abs() < 1e-4 && (cost.unit - 5e-4).abs() < 1e-5, "{cost:?}");
    }

    #[test]
    fn points_of_one_size_make_a_base() {
        let points = [Point { steps: 1.0, units: 4.0, seconds: 0.01 }; 30];
        assert!((line(&points).seconds(1.0, 4.0, 0.0) - 0.01).abs() < 1e-9);
    }
}
