use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::{collection::vec, prelude::*};

use super::*;

/// Prompts of 100 ms, steps of 10 ms and 1 ms an answer.
fn machine() -> Machine {
    Machine {
        prefill: StepCost { base: 0.0, unit: 1e-4, context: 0.0 },
        step_tokens: 0.0,
        decode: StepCost { base: 0.01, unit: 0.001, context: 0.0 },
        tokens: 1e6,
    }
}

fn demand(requests: f64, ttft_ms: u64) -> Demand {
    let budgets = Budgets { ttft: Duration::from_millis(ttft_ms), itl: Duration::from_millis(30) };
    let asked = vec![Asked { prompt: 1000.0, budgets }];
    Demand { requests, asked, computed: 1.0, answers: 100.0, waiting: 0.0 }
}

/// Share of prompts that are done in time by as many nodes, one after the other; each is one of
/// these by its time and its budget.
fn simulated(nodes: usize, requests: f64, prompts: &[(f64, f64)]) -> f64 {
    const PROMPTS: usize = 20_000;
    let mut random = fastrand::Rng::with_seed(7);
    let microseconds = |seconds: f64| (seconds * 1e6) as u64;
    let mut free: BinaryHeap<_> = (0..nodes).map(|_| Reverse(0)).collect();
    let (mut now, mut in_time) = (0.0, 0);
    for _ in 0..PROMPTS {
        now += -(1.0 - random.f64()).ln() / requests;
        let (run, budget) = prompts[random.usize(..prompts.len())];
        let Reverse(idle) = free.pop().unwrap();
        let end = idle.max(microseconds(now)) + microseconds(run);
        free.push(Reverse(end));
        in_time += usize::from(end - microseconds(now) <= microseconds(budget));
    }
    in_time as f64 / PROMPTS as f64
}

#[test]
fn first_tokens_come_in_time_as_often_as_in_a_simulation() {
    for nodes in [1, 2, 4, 8] {
        for busy in [0.5, 0.7, 0.9] {
            for ttft_ms in [150, 200, 400] {
                let requests = busy * nodes as f64 / 0.1;
                let (found, found_busy) = prompts(&demand(requests, ttft_ms), &machine(), nodes);
                let expected = simulated(nodes, requests, &[(0.1, ttft_ms as f64 / 1e3)]);
                assert!((found - expected).abs() < 0.08, "{nodes} {busy} {ttft_ms}: {found} {expected}");
                assert!((found_busy - busy).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn each_prompt_is_held_against_its_own_budget() {
    // Two of three take 50 ms and have 200, the others 800 and a second or three; on average 300 ms each.
    for long_budget in [1000, 3000] {
        for (nodes, busy) in [(1, 0.5), (4, 0.5), (4, 0.8), (12, 0.8), (12, 0.95)] {
            let asked = |prompt, ttft_ms| Asked { prompt, ..demand(0.0, ttft_ms).asked[0] };
            let asked = vec![asked(500.0, 200), asked(500.0, 200), asked(8000.0, long_budget)];
            let requests = busy * f64::from(nodes) / 0.3;
            let demand = Demand { asked, ..demand(requests, 0) };
            let (found, found_busy) = prompts(&demand, &machine(), nodes as usize);
            let budget = long_budget as f64 / 1e3;
            let expected = simulated(nodes as usize, requests, &[(0.05, 0.2), (0.05, 0.2), (0.8, budget)]);
            assert!((found - expected).abs() < 0.1, "{nodes} {busy} {long_budget}: {found} {expected}");
            assert!((found_busy - busy).abs() < 1e-9);
        }
    }
}

#[test]
fn what_waits_is_work() {
    let (_, busy) = prompts(&demand(5.0, 1000), &machine(), 1);
    // 15 s of prompts, to be done in 30.
    let waiting = Demand { waiting: 150_000.0, ..demand(5.0, 1000) };
    let (share, busier) = prompts(&waiting, &machine(), 1);
    assert!(
        (busy - 0.5).abs() < 1e-9 && (busier - 1.0).abs() < 1e-9 && share == 0.0,
        "{busy} {busier} {share}"
    );
    assert_eq!(prompts(&waiting, &machine(), 2).1, 0.5);
}

#[test]
fn answers_are_as_many_at_once_as_their_number_and_their_time_say() {
    let itl = |requests, nodes| answers(&demand(requests, 1000), &machine(), nodes);
    // 20 at once is the most for 30 ms, which is 667 tokens a second.
    assert!(itl(2.0, 1).0 > 0.99);
    assert!(itl(8.0, 1).0 < 0.1);
    assert!(itl(8.0, 2).0 > 0.98);
    assert!((itl(20.0 / 3.0, 1).1 - 1.0).abs() < 1e-9);
    // Beyond 1,000 tokens a second a node gets no faster.
    assert_eq!(itl(10.0, 1).0, 0.0);
    assert!((itl(20.0, 1).1 - 3.0).abs() < 1e-9, "pressure goes on beyond that");
    // Pages for ten answers are the limit before the budget is.
    let small = Machine { tokens: 11_000.0, ..machine() };
    assert!(answers(&demand(6.0, 1000), &small, 1).0 < 0.2 && itl(6.0, 1).0 > 0.8);
}

#[test]
fn a_budget_that_no_node_keeps_wants_no_nodes() {
    assert_eq!(Split::wanted(&demand(10.0, 50), &machine()).prefill, 2);
    let slow = Machine { decode: StepCost { base: 1.0, ..machine().decode }, ..machine() };
    let outlook = Outlook::of(&demand(10.0, 1000), &slow, Split { prefill: 9, decode: 9 });
    assert_eq!((outlook.itl, outlook.attained()), (0.0, 0.0));
    assert!(Split::wanted(&demand(10.0, 1000), &slow).decode < 10);
    let idle = demand(0.0, 1000);
    assert_eq!(Split::wanted(&idle, &machine()), Split { prefill: 1, decode: 1 });
}

prop_compose! {
    pub(in super::super) fn any_machine()(
        base in 1e-4..0.05f64, unit in 1e-6..1e-3f64, context in 0.0..1e-8f64, step_tokens in 0u32..4096,
        decode_base in 1e-4..0.05f64, decode_unit in 1e-5..5e-3f64, decode_context in 0.0..1e-6f64,
        tokens in 1e3..1e7f64,
    ) -> Machine {
        Machine {
            prefill: StepCost { base, unit, context },
            step_tokens: step_tokens.into(),
            decode: StepCost { base: decode_base, unit: decode_unit, context: decode_context },
            tokens,
        }
    }
}

prop_compose! {
    fn any_asked()(prompt in 1.0..8000.0f64, ttft_ms in 10u64..5000, itl_ms in 1u64..200) -> Asked {
        let budgets = Budgets { ttft: Duration::from_millis(ttft_ms), itl: Duration::from_millis(itl_ms) };
        Asked { prompt, budgets }
    }
}

prop_compose! {
    pub(in super::super) fn any_demand()(
        requests in 0.0..200.0f64, asked in vec(any_asked(), 1..4), computed in 0.0..=1.0f64,
        answers in 1.0..2000.0f64, waiting in 0.0..1e5f64,
    ) -> Demand {
        Demand { requests, asked, computed, answers, waiting }
    }
}

proptest! {
    #[test]
    fn every_node_more_helps(demand in any_demand(), machine in any_machine(), nodes in 1usize..50) {
        for of in [prompts, answers] {
            let (few, more) = (of(&demand, &machine, nodes), of(&demand, &machine, nodes + 1));
            prop_assert!((0.0..=1.0).contains(&few.0) && few.1 >= 0.0, "{few:?}");
            prop_assert!(more.0 >= few.0 - 1e-12 && more.1 <= few.1 + 1e-12, "{few:?} {more:?}");
        }
    }

    #[test]
    fn wanted_nodes_keep_the_budgets_and_none_is_too_many(demand in any_demand(), machine in any_machine()) {
        let wanted = Split::wanted(&demand, &machine);
        for (side, of) in [prompts, answers].into_iter().enumerate() {
            let nodes = [wanted.prefill, wanted.decode][side];
            prop_assert!(nodes >= 1);
            let (share, busy) = of(&demand, &machine, nodes);
            prop_assert!(share >= WANTED || busy <= BUSY + 1e-9, "{share} {busy}");
            if nodes > 1 {
                let (share, busy) = of(&demand, &machine, nodes - 1);
                prop_assert!(share < WANTED || busy > BUSY, "{share} {busy}");
            }
        }
    }
}
