use std::{collections::BTreeSet, time::Duration};

use baton_coordinator::PolicyName;
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
