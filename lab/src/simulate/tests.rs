use std::{collections::BTreeSet, time::Duration};

use baton_coordinator::{BalancerMode, BalancingConfig, PolicyName};
use proptest::prelude::*;

use super::*;
use crate::{
    measure::Outcome,
    traffic::{Arrivals, Length, Prefixes, Shape, Workload},
};

/// Steps of 1 ms and 0.1 ms a prompt token, and of 2 ms and 0.5 ms an answer.
fn file(cluster: ClusterShape, sessions: usize, rate: f64) -> ScenarioFile {
    let cost = |base, unit| Some(CostShape { base, unit, context: 0.0 });
    ScenarioFile {
        cluster,
        machine: MachineShape {
            prefill: cost(1e-3, 1e-4),
            decode: cost(2e-3, 5e-4),
            kv_token_bytes: Some(1024),
            limits: Limits { pages: 2000, max_batch_tokens: 512, ..Limits::default() },
            link: Link { bytes_per_second: 1e9, hop: 1e-4, handoff: 0.0, front: 1e-3 },
            ..MachineShape::default()
        },
        workload: Workload {
            sessions,
            arrivals: Arrivals::Poisson { rate },
            classes: vec![Class {
                shape: Shape {
                    input: Length::between(20, 600),
                    output: Length::between(1, 40),
                    ..Shape::default()
                },
                ..Class::default()
            }],
            ..Workload::default()
        },
        ..ScenarioFile::default()
    }
}

fn split(prefill: usize, decode: usize) -> ClusterShape {
    ClusterShape { prefill, decode, local: 0 }
}

fn simulated(file: ScenarioFile) -> Simulated {
    run(file.scenario(None).unwrap())
}

/// Every request once, with all of its tokens if it was answered.
fn check(simulated: &Simulated, requests: usize) {
    let records = &simulated.run.records;
    assert_eq!(records.len(), requests);
    let once: BTreeSet<_> = records.iter().map(|record| (record.session, record.turn)).collect();
    assert_eq!(once.len(), requests);
    for record in records.iter().filter(|record| record.is_answered()) {
        assert_eq!(record.output_tokens, record.wanted_tokens, "{record:?}");
        assert_eq!(record.gaps.len() + 1, record.wanted_tokens, "{record:?}");
        assert!(record.ttft.unwrap() > 0.0 && record.gaps.iter().all(|gap| *gap >= 0.0), "{record:?}");
        let took = record.ttft.unwrap() + record.gaps.iter().map(|&gap| f64::from(gap)).sum::<f64>();
        assert!((took - record.e2e()).abs() < 1e-3, "{took}: {record:?}");
    }
}

#[test]
fn a_request_alone_takes_what_its_steps_take() {
    let mut file = file(split(1, 1), 1, 1.0);
    file.workload.classes[0].shape =
        Shape { input: Length::fixed(1000), output: Length::fixed(11), ..Shape::default() };
    let simulated = simulated(file);
    let record = &simulated.run.records[0];
    // Two steps with 1000 tokens, two messages, and the way to and fro.
    let ttft = 0.002 + 0.1 + 0.0002 + 0.001;
    assert!((record.ttft.unwrap() - ttft).abs() < 1e-9, "{record:?}");
    // A quarter of a millisecond for the last group of layers, then a step.
    let transfer = 1000.0 * 1024.0 / 1e9;
    let first = record.gaps[0];
    assert!((f64::from(first) - (transfer / 4.0 + 0.0025)).abs() < 1e-6, "{record:?}");
    assert!(record.gaps[1..].iter().all(|gap| (gap - 0.0025).abs() < 1e-6), "{record:?}");
    assert_eq!(simulated.run.records.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_request_ends_once_and_nodes_end_empty(
        seed: u64, prefill in 1usize..4, decode in 1usize..4, local in 0usize..2, rate in 1f64..400.0,
        pages in 60usize..3000, turns in 1usize..4, policy in 0usize..4, places in 1usize..80,
    ) {
        let mut file = file(ClusterShape { prefill, decode, local }, 60, rate);
        file.workload.seed = seed;
        file.machine.limits.pages = pages;
        file.workload.classes[0].shape.turns = Length::fixed(turns);
        file.workload.classes[0].shape.prefixes = Prefixes { tokens: 64, count: 3 };
        file.coordinator.policy = [
            PolicyName::RoundRobin, PolicyName::LeastLoaded, PolicyName::PrefixAware, PolicyName::Predicted,
        ][policy];
        file.coordinator.max_running = places;
        file.coordinator.max_wait_ms = 600_000;
        let simulated = simulated(file);
        check(&simulated, 60 * turns);
        prop_assert!(simulated.run.records.iter().all(crate::measure::Record::is_answered));
        prop_assert!(simulated.run.kv_usage.iter().all(|share| (0.0..=1.0).contains(share)));
    }

    #[test]
    fn losses_lose_no_request(seed: u64, at in 0.0f64..1.0, which in 0usize..4) {
        let mut file = file(split(2, 2), 150, 150.0);
        file.workload.seed = seed;
        let node = ["prefill-1", "prefill-2", "decode-1", "decode-2"][which].to_owned();
        file.events = vec![
            Happening::Fails { at, node: node.clone() },
            Happening::Returns { at: at + 0.5, node },
            Happening::Rate { at: 0.5, times: 2.0 },
        ];
        let simulated = simulated(file);
        check(&simulated, 150);
        prop_assert!(simulated.run.records.iter().all(crate::measure::Record::is_answered));
    }
}

#[test]
fn the_same_seed_is_the_same_to_the_last_digit() {
    let of = |seed| {
        let mut file = file(split(3, 5), 400, 100.0);
        file.workload.seed = seed;
        file.coordinator.policy = PolicyName::Predicted;
        file.events = vec![Happening::Fails { at: 1.0, node: "decode-2".to_owned() }];
        simulated(file).run
    };
    assert_eq!(of(7), of(7));
    assert_ne!(of(7).records, of(8).records);
}

/// What happens is noted and drawn alike, too.
#[test]
fn what_the_coordinator_does_is_the_same_by_seed() {
    let of = |seed| {
        let mut file = unbalanced();
        file.workload.seed = seed;
        let Simulated { run, done, roles, preempted, .. } = simulated(file);
        (run, done, roles, preempted)
    };
    assert_eq!(of(3), of(3));
    assert_ne!(of(3).0.records, of(4).0.records);
}

/// Prompts of 200 ms, eight a second, and a single node for them.
fn unbalanced() -> ScenarioFile {
    let mut file = file(split(1, 5), 600, 8.0);
    file.workload.classes[0].shape =
        Shape { input: Length::fixed(1900), output: Length::fixed(20), ..Shape::default() };
    file.workload.classes[0].budgets =
        crate::budgets::Budgets { ttft_ms: Some(1000.0), itl_ms: Some(50.0), ..Default::default() };
    file.machine.limits.pages = 4000;
    file.coordinator.balancer = BalancerMode::On;
    file.coordinator.balancing = BalancingConfig { interval_ms: 1000, looks: 2, cool_down_ms: 3000 };
    file
}

#[test]
fn the_balancer_gives_prompts_more_nodes() {
    let balanced = simulated(unbalanced());
    check(&balanced, 600);
    let gained: Vec<_> = balanced.done.iter().map(|done| done.what).collect();
    assert!(gained.starts_with(&[Steered::Role(Role::Prefill)]), "{:?}", balanced.done);
    assert!(gained.len() <= 3, "changes come to rest: {:?}", balanced.done);
    let (_, roles) = *balanced.roles.last().unwrap();
    assert!(roles[0] >= 2 && roles.iter().sum::<usize>() == 6, "{:?}", balanced.roles);
    let mut file = unbalanced();
    file.coordinator.balancer = BalancerMode::Advise;
    let advised = simulated(file);
    assert!(advised.done.is_empty(), "{:?}", advised.done);
    let waits = |of: &Simulated| of.run.records.iter().filter_map(|record| record.ttft).sum::<f64>();
    assert!(10.0 * waits(&balanced) < waits(&advised), "{} {}", waits(&balanced), waits(&advised));
}

#[test]
fn a_slow_node_is_taken_out_and_a_lost_one_comes_back_as_it_was() {
    let node = || "decode-2".to_owned();
    let mut file = file(split(2, 5), 800, 20.0);
    file.machine.decode = Some(CostShape { base: 0.02, unit: 5e-4, context: 0.0 });
    file.events = vec![
        Happening::Slows { at: 5.0, node: node(), times: 5.0 },
        Happening::Role { at: 1.0, node: "decode-5".to_owned(), role: Role::Prefill },
        Happening::Fails { at: 20.0, node: "decode-5".to_owned() },
        Happening::Returns { at: 21.0, node: "decode-5".to_owned() },
    ];
    let simulated = simulated(file);
    check(&simulated, 800);
    // Out for half a minute, and again after five looks more.
    let [out, again] = simulated.done.as_slice() else { panic!("{:?}", simulated.done) };
    assert_eq!((&again.node, again.what), (&out.node, out.what));
    assert!((again.at_ms - out.at_ms).abs_diff(34_500) <= 1_500, "{out:?} {again:?}");
    assert_eq!((out.node.as_str(), out.what), ("decode-2", Steered::Out));
    assert!((9_000..12_000).contains(&out.at_ms), "five looks in a row: {out:?}");
    let roles: Vec<_> = simulated.roles.iter().map(|(_, roles)| *roles).collect();
    assert_eq!(roles, [[2, 5], [3, 4], [2, 4], [2, 5]]);
    let slow = |from: f64, to: f64| {
        let within = |record: &&crate::measure::Record| (from..to).contains(&record.intended);
        let all = simulated.run.records.iter().filter(within);
        all.flat_map(|record| &record.gaps).filter(|gap| **gap > 0.1).count()
    };
    assert!(slow(5.0, 10.0) > 50 && slow(13.0, 30.0) == 0, "{} {}", slow(5.0, 10.0), slow(13.0, 30.0));
}

#[test]
fn the_youngest_gives_its_pages_to_older_ones_and_all_are_answered() {
    let of = |pages| {
        let mut file = file(split(1, 1), 40, 100.0);
        file.workload.classes[0].shape =
            Shape { input: Length::fixed(150), output: Length::fixed(300), ..Shape::default() };
        file.machine.limits.pages = pages;
        simulated(file)
    };
    let (few, many) = (of(100), of(2000));
    check(&few, 40);
    assert!(few.preempted > 10 && many.preempted == 0, "{} {}", few.preempted, many.preempted);
    let worst =
        |of: &Simulated| of.run.records.iter().flat_map(|record| &record.gaps).fold(0f32, |a, b| a.max(*b));
    assert!(worst(&few) > 5.0 * worst(&many), "{} {}", worst(&few), worst(&many));
}

#[test]
fn whose_time_is_over_ends_wherever_it_is() {
    for policy in [PolicyName::LeastLoaded, PolicyName::Predicted] {
        for (places, rate) in [(8, 200.0), (1000, 200.0), (1000, 20.0)] {
            let mut file = file(ClusterShape { prefill: 1, decode: 1, local: 1 }, 200, rate);
            file.coordinator.policy = policy;
            file.coordinator.max_running = places;
            file.workload.classes[0].deadline_ms = Some(400.0);
            let simulated = simulated(file);
            check(&simulated, 200);
            let records = &simulated.run.records;
            assert!(records.iter().all(|record| record.e2e() <= 0.4 + 1e-3 + 1e-9), "{records:?}");
            let ended = records.iter().filter(|record| !record.is_answered()).count();
            assert!(ended < 200 && (ended > 20 || rate < 100.0), "{ended} {places} {rate}");
        }
    }
}

#[test]
fn who_has_priority_waits_less_and_shares_change() {
    let class = |name: &str, priority, input| Class {
        name: name.to_owned(),
        priority,
        shape: Shape { input: Length::fixed(input), output: Length::fixed(10), ..Shape::default() },
        ..Class::default()
    };
    let mut file = file(split(1, 1), 400, 100.0);
    file.workload.classes = vec![class("usual", 0, 300), class("first", 5, 301)];
    (file.coordinator.max_running, file.coordinator.max_wait_ms) = (4, 600_000);
    file.events = vec![Happening::Share { at: 2.0, class: "first".to_owned(), share: 9.0 }];
    let simulated = simulated(file.clone());
    check(&simulated, 400);
    let of = |class| simulated.run.records.iter().filter(move |record| record.class == class);
    let mean = |class| of(class).filter_map(|record| record.ttft).sum::<f64>() / of(class).count() as f64;
    assert!(mean(0) > 2.0 * mean(1), "{} {}", mean(0), mean(1));
    let share = |from: f64, to: f64| {
        let within = |class| of(class).filter(|record| (from..to).contains(&record.intended)).count() as f64;
        within(1) / (within(0) + within(1))
    };
    assert!(
        (0.35..0.65).contains(&share(0.0, 2.0)) && share(2.0, 9.0) > 0.8,
        "{} {}",
        share(0.0, 2.0),
        share(2.0, 9.0)
    );
    file.events = vec![Happening::Share { at: 2.0, class: "nobody".to_owned(), share: 9.0 }];
    assert!(file.scenario(None).unwrap_err().to_string().contains("nobody"));
}

#[test]
fn nodes_are_busy_while_there_is_work() {
    // Ten times what the one prefill node can do: it never rests, and the work is all of its time.
    let simulated = simulated(file(split(1, 2), 300, 1000.0));
    check(&simulated, 300);
    let prompt_tokens: usize = simulated.run.records.iter().filter_map(|record| record.prompt_tokens).sum();
    let least = prompt_tokens as f64 * 1e-4;
    let worked = simulated.busy[0].mean * simulated.cost.seconds;
    assert!(worked >= least, "{worked} s of {least} s");
    let last_first = simulated.run.records.iter().map(|r| r.intended + r.ttft.unwrap()).fold(0.0, f64::max);
    assert!(worked > 0.98 * (last_first - 0.02), "{worked} s of {last_first} s");
}

#[test]
fn what_has_no_place_is_refused_and_what_is_shared_is_cached() {
    let mut file = file(split(1, 1), 300, 2000.0);
    file.coordinator.max_running = 10;
    file.coordinator.max_waiting = 5;
    let refused = simulated(file).run.records.iter().filter(|record| record.is_refused()).count();
    assert!((100..290).contains(&refused), "{refused}");

    let mut file = self::file(split(2, 2), 100, 20.0);
    file.coordinator.policy = PolicyName::PrefixAware;
    file.workload.classes[0].shape.prefixes = Prefixes { tokens: 320, count: 2 };
    let simulated = simulated(file);
    check(&simulated, 100);
    let cached: usize = simulated.run.records.iter().filter_map(|record| record.cached_tokens).sum();
    assert!(cached > 80 * 320, "{cached}");
}

#[test]
fn a_cluster_of_no_nodes_that_work_refuses_in_the_end() {
    let mut file = file(split(1, 1), 5, 100.0);
    file.coordinator.node_wait_ms = 500;
    file.events = vec![Happening::Fails { at: 0.0, node: "decode-1".to_owned() }];
    let simulated = simulated(file);
    let refused = |record: &crate::measure::Record| matches!(record.outcome, Outcome::Refused { .. });
    assert!(simulated.run.records.iter().all(refused), "{:?}", simulated.run.records);
    assert!(simulated.cost.decision().p50 < Duration::from_millis(1).as_secs_f64());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let error = |file: ScenarioFile| file.scenario(None).unwrap_err().to_string();
    assert!(error(file(split(0, 3), 1, 1.0)).contains("prefill"));
    let mut unknown = file(split(1, 1), 1, 1.0);
    unknown.events = vec![Happening::Fails { at: 0.0, node: "decode-9".to_owned() }];
    assert!(error(unknown).contains("decode-9"));
    let mut bare = file(split(1, 1), 1, 1.0);
    bare.machine.kv_token_bytes = None;
    assert!(error(bare).contains("kv_token_bytes"));
    let mut bounded = file(split(1, 1), 1, 1.0);
    bounded.workload.max_in_flight = Some(3);
    assert!(error(bounded).contains("max_in_flight"));
}
