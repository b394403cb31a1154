use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn keeper() -> Keeper {
    // 5 ms a step and 2 ms an answer.
    Keeper { cost: StepCost { base: 0.005, unit: 0.002, context: 0.0 }, floor: 10 * MS }
}

fn going(number: u64, budget_ms: Option<u32>, went_on: Instant) -> Going {
    Going { key: (number, 1), budget: budget_ms.map(|ms| MS * ms), went_on, units: 1.0, context: 100.0 }
}

fn numbers(keys: Vec<SequenceKey>) -> Vec<u64> {
    keys.into_iter().map(|(number, _)| number).collect()
}

#[test]
fn without_budgets_all_go_on() {
    let now = Instant::now();
    let answers: Vec<_> = (0..100).map(|number| going(number, None, now)).collect();
    assert_eq!(keeper().limit(&answers), None);
    assert_eq!(numbers(keeper().choose(answers.clone())), (0..100).collect::<Vec<_>>());
    assert!(keeper().has_room(&answers, going(100, None, now)));
}

#[test]
fn a_step_that_keeps_the_shortest_budget_has_all() {
    let now = Instant::now();
    let answers: Vec<_> = (0..8).map(|number| going(number, Some(22 + number as u32), now)).collect();
    assert_eq!(keeper().choose(answers).len(), 8);
}

#[test]
fn whoever_is_due_first_goes_on_and_the_others_miss_a_step() {
    let start = Instant::now();
    let tight = going(9, Some(16), start);
    let loose: Vec<_> = (0..9).map(|number| going(number, Some(100), start)).collect();
    let chosen = keeper().choose([loose.as_slice(), &[tight]].concat());
    // Five fit into 16 ms.
    assert_eq!(numbers(chosen), [0, 1, 2, 3, 9]);
    // Those who have waited longest are due first, but for the one with the short budget.
    let later = start + 16 * MS;
    let mut after: Vec<_> = loose
        .iter()
        .map(|one| Going { went_on: if one.key.0 < 4 { later } else { start }, ..*one })
        .collect();
    after.push(Going { went_on: later, ..tight });
    assert_eq!(numbers(keeper().choose(after)), [4, 5, 6, 7, 9]);
}

#[test]
fn a_budget_that_no_answer_could_keep_binds_nobody() {
    let now = Instant::now();
    let keeper = Keeper { floor: Duration::ZERO, ..keeper() };
    let answers = [going(0, Some(3), now), going(1, Some(50), now)];
    assert_eq!(keeper.limit(&answers), Some(0.05));
    assert_eq!(keeper.choose(answers.to_vec()).len(), 2);
    // And one below the floor counts as that.
    let floored = Keeper { floor: 30 * MS, ..keeper };
    assert_eq!(floored.limit(&answers), Some(0.03));
}

#[test]
fn no_budget_keeps_everybody_else_out() {
    let now = Instant::now();
    // A step of nothing takes 20 ms, and each answer adds 1.
    let cost = StepCost { base: 0.02, unit: 0.001, context: 0.0 };
    let greedy = going(0, Some(21), now);
    let keeper = Keeper { cost, floor: 10 * MS };
    assert_eq!(keeper.limit(&[greedy]), Some(0.03));
    let mut answers = vec![greedy];
    while keeper.has_room(&answers, going(1, Some(1000), now)) {
        answers.push(going(1, Some(1000), now));
    }
    assert!(answers.len() >= 10, "{} fit", answers.len());
    // Steps that cost less by themselves leave it as it is; one that nobody could keep still binds nobody.
    assert_eq!(keeper.limit(&[going(0, Some(20), now)]), None);
    assert_eq!(Keeper { cost: StepCost { base: 0.001, ..cost }, ..keeper }.limit(&[greedy]), Some(0.021));
}

#[test]
fn whoever_would_break_a_budget_waits() {
    let now = Instant::now();
    let tight: Vec<_> = (0..5).map(|number| going(number, Some(16), now)).collect();
    assert!(keeper().has_room(&tight[..4], tight[4]));
    assert!(!keeper().has_room(&tight, going(5, Some(16), now)));
    // Nor is there time for one that wants a token a second, unless the steps are longer.
    assert!(!keeper().has_room(&tight, going(5, None, now)));
    let patient: Vec<_> = (0..5).map(|number| going(number, Some(40), now)).collect();
    assert!(keeper().has_room(&patient, going(5, None, now)));
    // An engine without answers takes anybody.
    assert!(keeper().has_room(&[], going(5, Some(1), now)));
}

proptest! {
    /// However many there are, steps follow each other such that nobody who came in with room
    /// waits longer than the budget and two steps.
    #[test]
    fn budgets_of_all_that_had_room_are_kept(budgets in prop::collection::vec(12u32..200, 1..40)) {
        let (keeper, start) = (keeper(), Instant::now());
        let mut answers: Vec<Going> = Vec::new();
        for (number, budget) in (0u64..).zip(budgets) {
            let newcomer = going(number, Some(budget), start);
            if keeper.has_room(&answers, newcomer) {
                answers.push(newcomer);
            }
        }
        let mut now = start;
        for _ in 0..300 {
            let chosen = keeper.choose(answers.clone());
            let (mut in_step, began) = (Vec::new(), now);
            for answer in &mut answers {
                if chosen.contains(&answer.key) {
                    in_step.push(*answer);
                }
            }
            now += Duration::from_secs_f64(keeper.step(&in_step));
            let slack = 2 * Duration::from_secs_f64(keeper.limit(&answers).unwrap());
            for answer in &mut answers {
                if chosen.contains(&answer.key) {
                    let late = began.saturating_duration_since(answer.went_on + answer.budget.unwrap());
                    prop_assert!(late <= slack, "{answer:?} late by {late:?}");
                    answer.went_on = began;
                }
            }
        }
    }
}
