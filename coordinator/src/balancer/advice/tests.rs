use baton_protocol::{Budgets, StepCost};
use proptest::prelude::*;

use super::{
    super::outlook::{
        Asked,
        tests::{any_demand, any_machine},
    },
    *,
};

fn machine() -> Machine {
    Machine {
        prefill: StepCost { base: 0.0, unit: 1e-4, context: 0.0 },
        step_tokens: 0.0,
        decode: StepCost { base: 0.01, unit: 0.001, context: 0.0 },
        tokens: 1e6,
    }
}

fn demand(requests: f64, prompt: f64, answers: f64) -> Demand {
    let budgets = Budgets { ttft: Duration::from_millis(500), itl: Duration::from_millis(30) };
    Demand { requests, asked: vec![Asked { prompt, budgets }], computed: 1.0, answers, waiting: 0.0 }
}

#[test]
fn the_role_with_too_much_to_do_gains_a_node() {
    let of = |demand: &Demand, prefill, decode| {
        Advice::of(demand.clone(), &machine(), Split { prefill, decode }).gains
    };
    // Prompts of 0.2 s, 8 a second: two nodes at least.
    let long_prompts = demand(8.0, 2000.0, 20.0);
    assert_eq!(of(&long_prompts, 1, 3), Some(Role::Prefill));
    assert_eq!(of(&long_prompts, 3, 1), None);
    assert_eq!(of(&long_prompts, 1, 1), None, "the last decode node stays");
    // 1,600 tokens a second: three nodes.
    let long_answers = demand(8.0, 100.0, 200.0);
    assert_eq!(of(&long_answers, 3, 1), Some(Role::Decode));
    assert_eq!(of(&long_answers, 1, 3), None);
    assert_eq!(of(&demand(0.5, 100.0, 20.0), 3, 1), None, "what is idle stays as it is");
    // Far beyond what any split can do, the pressure is shared.
    assert_eq!(of(&demand(80.0, 2000.0, 20.0), 1, 5), Some(Role::Prefill));
    // One node more of so many is little, and not enough; eight more are.
    let many = Advice::of(demand(80.0, 2000.0, 20.0), &machine(), Split { prefill: 12, decode: 18 });
    assert_eq!(many.gains, Some(Role::Prefill));
    assert!(many.by >= 8, "{many:?}");
}

#[test]
fn advice_has_to_last_and_changes_are_apart() {
    let (mut patience, start) = (Patience::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let heard: Vec<_> = (0..3).map(|look| patience.hear(Some(Role::Prefill), 3, at(look))).collect();
    assert_eq!(heard, [None, None, Some(Role::Prefill)]);
    // Another word begins anew.
    assert_eq!(patience.hear(Some(Role::Decode), 3, at(3)), None);
    assert_eq!(patience.hear(None, 3, at(4)), None);
    for look in 5..7 {
        assert_eq!(patience.hear(Some(Role::Prefill), 3, at(look)), None);
    }
    assert_eq!(patience.hear(Some(Role::Prefill), 3, at(7)), Some(Role::Prefill));
    patience.rest(Duration::from_secs(60), at(7));
    for look in 8..67 {
        assert_eq!(patience.hear(Some(Role::Prefill), 3, at(look)), None);
    }
    assert_eq!(patience.hear(Some(Role::Prefill), 3, at(67)), Some(Role::Prefill));
}

proptest! {
    /// As long as the same is asked for, changes end, all go one way, and where they end fewer requests
    /// than are worth a change are lost.
    #[test]
    fn changes_come_to_rest(
        demand in any_demand(), machine in any_machine(), prefill in 1usize..12, decode in 1usize..12,
    ) {
        let of = |split| Advice::of(demand.clone(), &machine, split);
        let (start, mut now) = (Split { prefill, decode }, Split { prefill, decode });
        let (first, mut changes) = (of(start), 0);
        while let Some(role) = of(now).gains {
            prop_assert_eq!(Some(role), first.gains);
            match role {
                Role::Prefill => now = Split { prefill: now.prefill + 1, decode: now.decode - 1 },
                _ => now = Split { prefill: now.prefill - 1, decode: now.decode + 1 },
            }
            changes += 1;
            prop_assert!(now.prefill >= 1 && now.decode >= 1 && changes <= first.by, "{:?} to {:?}", start, now);
        }
        prop_assert!(of(now).outlook.attained() > first.outlook.attained() - GAIN);
        prop_assert_eq!(now.prefill + now.decode, prefill + decode);
    }

    /// Where there are as many nodes as are wanted, nothing is changed.
    #[test]
    fn wanted_nodes_are_left_alone(demand in any_demand(), machine in any_machine()) {
        let advice = Advice::of(demand.clone(), &machine, Split { prefill: 1, decode: 1 });
        let there = Advice::of(demand, &machine, advice.wanted);
        let keeps = there.outlook.ttft >= 0.98 && there.outlook.itl >= 0.98;
        prop_assert!(!keeps || there.gains.is_none(), "{there:?}");
    }
}
