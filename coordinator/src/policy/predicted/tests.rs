use std::sync::Arc;

use baton_protocol::{KvDtype, KvShape, NodeInfo, Role, StepCost, StepModel, wire::KvPath};
use proptest::prelude::*;

use super::*;
use crate::{
    Load, Sent,
    tests::{node_info, request},
};

const BUDGETS: Budgets = Budgets { ttft: Duration::from_secs(1), itl: Duration::from_millis(50) };

/// A node with steps of 1 ms, 1 ms for each 10 prompt tokens and 1 ms for each answer.
fn candidate(name: &str, role: Role) -> Candidate {
    let kv = KvShape { layers: 2, kv_heads: 1, head_dim: 64, dtype: KvDtype::F32, page_tokens: 16 };
    Candidate {
        info: Arc::new(NodeInfo { kv, ..node_info(name, &[role]) }),
        load: steps_of_100(),
        sent: Sent::default(),
        cached_tokens: 0,
        roads: [].into(),
    }
}

fn steps_of_100() -> Load {
    let cost = |unit| Some(StepCost { base: 1e-3, unit, context: 0.0 });
    let steps = StepModel { prefill: cost(1e-4), decode: cost(1e-3) };
    Load { steps, step_prompt_tokens: 100, ..Load::default() }
}

fn prompt(tokens: usize) -> Request {
    Request { tokens: vec![0; tokens], ..request(1) }
}

fn pair(request: &Request, decode: &[Candidate], prefill: &[Candidate], turn: u64) -> Pair {
    let ask = Ask { request, budgets: &BUDGETS, decode, prefill, turn, local_below: 0 };
    Predicted.pair(&ask).unwrap()
}

#[test]
fn an_idle_cluster_hands_long_prompts_over_only_where_that_helps() {
    let mut decode = [candidate("d1", Role::Decode), candidate("d2", Role::Decode)];
    let prefill = [candidate("p1", Role::Prefill), candidate("p2", Role::Prefill)];
    let request = prompt(1000);
    // Nobody else is there: the road would be all that differs.
    decode.iter_mut().for_each(|node| node.roads = [road("p1", 1e6), road("p2", 1e6)].into());
    assert!(pair(&request, &decode, &prefill, 0).prefill.is_empty());
    // Answers that go on would wait for the prompt.
    decode.iter_mut().for_each(|node| node.load.running = 8);
    decode.iter_mut().for_each(|node| node.roads = [road("p1", 1e9), road("p2", 1e9)].into());
    let handed = pair(&request, &decode, &prefill, 0);
    assert_eq!(handed.prefill.len(), 2);
    let prediction = handed.prediction.unwrap();
    // Ten steps of 100 tokens; nine answers in a step.
    assert!((prediction.ttft - 0.11).abs() < 1e-9, "{prediction:?}");
    assert!((prediction.itl - 0.010).abs() < 1e-9, "{prediction:?}");
}

#[test]
fn the_prefill_node_that_is_done_first_runs_the_prompt() {
    let mut decode = [candidate("d", Role::Decode)];
    decode[0].load.running = 20;
    let mut prefill = ["p1", "p2", "p3"].map(|name| candidate(name, Role::Prefill));
    prefill[0].load.waiting_prefill_tokens = 5000;
    prefill[1].sent.prompt_tokens = 1000;
    assert_eq!(pair(&prompt(900), &decode, &prefill, 0).prefill, [2, 1, 0]);
    // What is cached is not computed.
    prefill[1].cached_tokens = 890;
    prefill[1].sent.prompt_tokens = 500;
    assert_eq!(pair(&prompt(900), &decode, &prefill, 0).prefill, [1, 2, 0]);
    // A node that is five times as slow loses with less to do.
    prefill[1].load.steps.prefill = Some(StepCost { base: 5e-3, unit: 5e-3, context: 0.0 });
    assert_eq!(pair(&prompt(900), &decode, &prefill, 0).prefill[0], 2);
}

#[test]
fn what_has_been_computed_since_it_was_its_turn_is_not_waited_for() {
    let decode = [Candidate { load: Load { running: 20, ..steps_of_100() }, ..candidate("d", Role::Decode) }];
    let mut prefill = [candidate("p", Role::Prefill)];
    // 400 tokens in four steps of 11 ms before this one's ten.
    prefill[0].sent = Sent { prompt_tokens: 400, first_prompt_tokens: 300, ..Sent::default() };
    let ttft = |prefill: &[Candidate]| pair(&prompt(1000), &decode, prefill, 0).prediction.unwrap().ttft;
    assert!((ttft(&prefill) - 0.154).abs() < 1e-9);
    prefill[0].sent.first_prompt_for = Duration::from_millis(22);
    assert!((ttft(&prefill) - 0.132).abs() < 1e-9);
    // A first one that takes longer than foretold is about to end, and the others are still to come.
    prefill[0].sent.first_prompt_for = Duration::from_secs(9);
    assert!((ttft(&prefill) - 0.121).abs() < 1e-9);
}

#[test]
fn requests_of_others_are_what_a_report_has_beyond_our_own() {
    let mut node = candidate("d", Role::Decode);
    node.load.running = 5;
    node.load.waiting_prefill_tokens = 700;
    node.load.sent = Sent { requests: 3, generating: 3, prompt_tokens: 600, ..Sent::default() };
    node.sent = Sent { requests: 1, generating: 0, prompt_tokens: 40, ..Sent::default() };
    // Ours have ended since; two answers and 100 tokens are of another coordinator.
    assert_eq!((node.sequences(), node.generating(), node.prefill_tokens()), (3, 2, 140));
}

#[test]
fn a_prompt_goes_where_it_is_cached_until_steps_there_are_too_long() {
    let mut decode = [candidate("d1", Role::Decode), candidate("d2", Role::Decode)];
    decode[1].cached_tokens = 990;
    assert_eq!(pair(&prompt(1000), &decode, &[], 0).decode, 1);
    assert_eq!(pair(&prompt(1000), &decode, &[], 1).decode, 1);
    decode[1].load.running = 60;
    assert_eq!(pair(&prompt(1000), &decode, &[], 0).decode, 0);
}

#[test]
fn a_slow_road_is_not_taken() {
    let mut decode = [candidate("d", Role::Decode)];
    decode[0].load.running = 20;
    let prefill = ["p1", "p2"].map(|name| candidate(name, Role::Prefill));
    decode[0].roads = [road("p1", 1e5), road("p2", 1e9)].into();
    assert_eq!(pair(&prompt(1000), &decode, &prefill, 0).prefill, [1, 0]);
    decode[0].roads = [road("p1", 1e9), road("p2", 1e5)].into();
    assert_eq!(pair(&prompt(1000), &decode, &prefill, 0).prefill, [0, 1]);
}

#[test]
fn nodes_that_have_said_nothing_are_ranked_by_their_work() {
    let silent = |name, running| {
        let load = Load { running, ..Load::default() };
        Candidate { load, ..candidate(name, Role::Decode) }
    };
    let nodes = [silent("a", 5), silent("b", 2), silent("c", 9)];
    assert_eq!(Predicted.rank(Work::Decode, &prompt(10), &nodes, 0), [1, 0, 2]);
    let ask = Ask {
        request: &prompt(10),
        budgets: &BUDGETS,
        decode: &[],
        prefill: &nodes,
        turn: 0,
        local_below: 0,
    };
    assert_eq!(Predicted.pair(&ask), None);
}

fn road(prefill_node: &str, bytes_per_second: f64) -> KvPath {
    KvPath { prefill_node: prefill_node.to_owned(), bytes_per_second, ..KvPath::default() }
}

fn any_candidate(name: &'static str, role: Role) -> impl Strategy<Value = Candidate> {
    let load = (0..50u32, 0..5000u64, 0..20_000u64, 1..2000u64);
    (load, 0..1000usize, 1e-5..1e-3f64, 1e-4..1e-2f64).prop_map(move |(load, cached, unit, base)| {
        let (running, waiting_prefill_tokens, running_context_tokens, step_prompt_tokens) = load;
        let cost = |unit| Some(StepCost { base, unit, context: unit * 1e-4 });
        let steps = StepModel { prefill: cost(unit), decode: cost(unit * 10.0) };
        let load = Load {
            running,
            waiting_prefill_tokens,
            running_context_tokens,
            step_prompt_tokens,
            steps,
            ..Load::default()
        };
        Candidate { load, cached_tokens: cached, ..candidate(name, role) }
    })
}

/// Everything that could be chosen, and how bad the best of it is.
fn least_badness(request: &Request, decode: &[Candidate], prefill: &[Candidate]) -> f64 {
    let alone = decode.iter().map(|to| local(to, request));
    let pairs = decode.iter().flat_map(|to| prefill.iter().map(|from| over(from, to, request)));
    alone.chain(pairs).map(|outlook| badness(&outlook, &BUDGETS)).fold(f64::INFINITY, f64::min)
}

proptest! {
    #[test]
    fn the_best_few_of_each_side_hold_the_best_pair(
        decode in prop::collection::vec(any_candidate("d", Role::Decode), 1..12),
        prefill in prop::collection::vec(any_candidate("p", Role::Prefill), 0..12),
        tokens in 1..2000usize,
        turn: u64,
    ) {
        let request = prompt(tokens);
        let chosen = pair(&request, &decode, &prefill, turn);
        let to = &decode[chosen.decode];
        let outlook = chosen.prefill.first().map_or_else(|| local(to, &request), |&from| over(&prefill[from], to, &request));
        prop_assert_eq!(chosen.prediction, Some(outlook.own));
        let least = least_badness(&request, &decode, &prefill);
        prop_assert!(badness(&outlook, &BUDGETS) <= least * (1.0 + 1e-9), "{:?}", (outlook, least));
        let mut seen = chosen.prefill.clone();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), chosen.prefill.len());
    }

    #[test]
    fn more_work_is_never_foretold_to_take_less_time(
        node in any_candidate("p", Role::Prefill), tokens in 1..2000usize, more in 1..2000usize,
    ) {
        let time = |node: &Candidate, tokens| {
            let prefill = predict::prefill(node, &prompt(tokens));
            prefill.wait + prefill.run
        };
        let before = time(&node, tokens);
        prop_assert!(time(&node, tokens + more) >= before);
        let mut busier = node.clone();
        busier.load.waiting_prefill_tokens += more as u64;
        busier.load.running += 1;
        prop_assert!(time(&busier, tokens) >= before);
        prop_assert!(predict::decode_step(&busier, &prompt(tokens)) > predict::decode_step(&node, &prompt(tokens)));
        let warmer = Candidate { cached_tokens: tokens, ..node };
        prop_assert!(time(&warmer, tokens) <= before);
    }
}
