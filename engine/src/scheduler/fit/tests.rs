use proptest::prelude::*;

use super::*;

/// A generator of numbers in [0, 1) that needs no crate.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Units and contexts of a step.
    fn step(&mut self) -> (f64, f64) {
        let units = 1.0 + (self.next() * 500.0).floor();
        (units, units * (1.0 + (self.next() * 4000.0).floor()))
    }
}

/// The relative error of a fit that so many of 100 steps like those it has seen do not exceed.
fn error_of(steps: usize, fit: &Fit, truth: &StepCost, numbers: &mut Numbers) -> f64 {
    let cost = fit.cost().unwrap();
    let error = |(units, contexts): (f64, f64)| {
        let right = truth.seconds(1.0, units, contexts);
        (cost.seconds(1.0, units, contexts) - right).abs() / right
    };
    let mut errors: Vec<_> = (0..100).map(|_| error(numbers.step())).collect();
    errors.sort_by(f64::total_cmp);
    errors[steps - 1]
}

fn truths() -> impl Strategy<Value = StepCost> {
    (1e-5..1e-2, 0.0..1e-3, 0.0..1e-6).prop_map(|(base, unit, context)| StepCost { base, unit, context })
}

proptest! {
    #[test]
    fn what_follows_a_line_is_found(truth in truths(), seed: u64) {
        let (mut fit, mut numbers) = (Fit::new([1.0; 3]), Numbers(seed));
        for _ in 0..200 {
            let (units, contexts) = numbers.step();
            fit.learn(units, contexts, truth.seconds(1.0, units, contexts));
        }
        prop_assert!(error_of(100, &fit, &truth, &mut numbers) < 0.02, "{fit:?}");
    }

    #[test]
    fn noise_and_outliers_move_it_little(truth in truths(), seed: u64) {
        let (mut fit, mut numbers) = (Fit::new([1.0; 3]), Numbers(seed));
        for _ in 0..400 {
            let (units, contexts) = numbers.step();
            let noise = 0.95 + 0.1 * numbers.next();
            let slow = if numbers.next() < 0.03 { 10.0 } else { 1.0 };
            fit.learn(units, contexts, truth.seconds(1.0, units, contexts) * noise * slow);
        }
        prop_assert!(error_of(90, &fit, &truth, &mut numbers) < 0.15, "{fit:?}");
    }

    #[test]
    fn coefficients_are_never_negative_whatever_comes(
        steps in prop::collection::vec((0.0..1e4f64, 0.0..1e8f64, prop_oneof![0.0..10.0f64, Just(f64::NAN)]), 1..60),
    ) {
        let mut fit = Fit::new([1.0; 3]);
        for (units, contexts, seconds) in steps {
            fit.learn(units, contexts, seconds);
            prop_assert!(fit.cost().is_none_or(|cost| cost.is_sane()), "{fit:?}");
        }
    }

    #[test]
    fn a_new_pace_is_learnt(truth in truths(), seed: u64) {
        let (mut fit, mut numbers) = (Fit::new([1.0; 3]), Numbers(seed));
        for pace in [1.0, 3.0] {
            for _ in 0..2000 {
                let (units, contexts) = numbers.step();
                fit.learn(units, contexts, pace * truth.seconds(1.0, units, contexts));
            }
        }
        let slower =
            StepCost { base: 3.0 * truth.base, unit: 3.0 * truth.unit, context: 3.0 * truth.context };
        prop_assert!(error_of(90, &fit, &slower, &mut numbers) < 0.05, "{fit:?}");
    }
}

#[test]
fn steps_that_are_all_alike_are_foretold_too() {
    let mut fit = Fit::new([1.0; 3]);
    assert_eq!(fit.cost(), None);
    (0..50).for_each(|_| fit.learn(8.0, 800.0, 0.02));
    let seconds = fit.cost().unwrap().seconds(1.0, 8.0, 800.0);
    assert!((seconds - 0.02).abs() < 1e-4, "{seconds}");
}
