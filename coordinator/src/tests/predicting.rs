//! Nodes say how long their steps take, and who gets a request then.

use baton_protocol::wire::{KvPath, LoadReport, StepCost};

use super::{fake::Act, *};

/// Steps of 1 ms, 0.1 ms a prompt token and 1 ms an answer.
fn report() -> LoadReport {
    let cost = |unit| Some(StepCost { base: 1e-3, unit, context: 0.0 });
    LoadReport {
        prefill_cost: cost(1e-4),
        decode_cost: cost(1e-3),
        step_prompt_tokens: 512,
        ..LoadReport::default()
    }
}

async fn predicting(roles: &[(&str, Role)], loads: &[LoadReport]) -> Cluster {
    let config = CoordinatorConfig { policy: crate::PolicyName::Predicted, ..config() };
    let infos = roles.iter().map(|(name, role)| node_info(name, &[*role])).collect();
    let cluster = Cluster::start(config, infos).await;
    for (node, load) in cluster.nodes.iter().zip(loads) {
        node.set_load(load.clone());
    }
    let known = || cluster.coordinator.status().nodes.iter().all(|node| node.load.steps.decode.is_some());
    cluster.until("all reports are in", |_| known()).await;
    cluster
}

fn script(tokens: u32) -> impl Iterator<Item = Act> {
    let tokens = (0..tokens).map(|position| token(0, position));
    [accepted()].into_iter().chain(tokens).chain([finished(0)]).map(Act::Send)
}

#[tokio::test]
async fn the_decode_node_with_the_shorter_steps_gets_the_request_and_the_error_is_measured() {
    let busy = LoadReport { running_sequences: 40, ..report() };
    let slow = LoadReport { decode_cost: Some(StepCost { base: 0.1, unit: 0.0, context: 0.0 }), ..report() };
    let loads = [busy, LoadReport { running_sequences: 2, ..report() }, slow];
    let cluster = predicting(&[("a", Role::Decode), ("b", Role::Decode), ("c", Role::Decode)], &loads).await;
    for _ in 0..3 {
        cluster.nodes[1].script(script(8));
        cluster.events(request(1)).await;
    }
    assert_eq!(cluster.nodes.iter().map(|node| node.opens().len()).collect::<Vec<_>>(), [0, 3, 0]);
    let mut registry = prometheus_client::registry::Registry::default();
    cluster.coordinator.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["prediction_ttft_ratio_count 3\n", "prediction_itl_ratio_count 3\n"] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn the_prefill_node_that_is_done_first_is_named_first() {
    let roles = [("d", Role::Decode), ("p1", Role::Prefill), ("p2", Role::Prefill), ("p3", Role::Prefill)];
    let running = LoadReport { running_sequences: 30, ..report() };
    let waiting = |tokens| LoadReport { waiting_prefill_tokens: tokens, ..report() };
    let road =
        |node: &str| KvPath { prefill_node: node.to_owned(), bytes_per_second: 1e9, ..KvPath::default() };
    let decode = LoadReport { kv_paths: ["p1", "p2", "p3"].map(road).into(), ..running };
    let cluster = predicting(&roles, &[decode, waiting(4000), waiting(100), waiting(900)]).await;
    cluster.nodes[0].script(script(1));
    cluster.events(request(1)).await;
    let open = cluster.nodes[0].opens().remove(0);
    let names: Vec<_> = open.candidates.into_iter().map(|candidate| candidate.node).collect();
    assert_eq!(names, ["p2", "p3", "p1"]);
}

#[tokio::test]
async fn costs_that_no_node_can_have_count_as_not_said() {
    let cluster = Cluster::decode(&["a"]).await;
    let cost = |base| Some(StepCost { base, unit: 0.0, context: 0.0 });
    cluster.nodes[0].set_load(LoadReport {
        prefill_cost: cost(f64::NAN),
        decode_cost: cost(0.5),
        ..report()
    });
    let steps = || cluster.coordinator.status().nodes[0].load.steps;
    cluster.until("the report", |_| steps().decode.is_some()).await;
    assert_eq!(steps().prefill, None);
}
