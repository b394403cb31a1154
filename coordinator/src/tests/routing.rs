//! Which nodes get what.

use baton_protocol::{
    ErrorCode,
    wire::{LoadReport, StepCost},
};

use super::{fake::Act, *};

/// The candidates that the one decode node is told of.
async fn candidates(config: CoordinatorConfig, infos: Vec<NodeInfo>) -> Vec<String> {
    let cluster = Cluster::start(config, infos).await;
    let decode = cluster.nodes.iter().find(|node| node.info().roles.contains(&Role::Decode)).unwrap();
    decode.script([accepted(), finished(0)].map(Act::Send));
    cluster.events(request(1)).await;
    let open = decode.opens().remove(0);
    let mut names: Vec<_> = open.candidates.into_iter().map(|candidate| candidate.node).collect();
    names.sort();
    names
}

#[tokio::test]
async fn prefill_nodes_that_can_hand_off_are_named() {
    let (decode, prefill) = ([Role::Decode], [Role::Prefill]);
    let other = NodeInfo { model_fingerprint: "other".into(), ..node_info("p-other", &prefill) };
    let draining = NodeInfo { state: NodeState::Draining, ..node_info("p-draining", &prefill) };
    let infos =
        vec![node_info("d", &decode), node_info("p1", &prefill), node_info("p2", &prefill), other, draining];
    assert_eq!(candidates(config(), infos.clone()).await, ["p1", "p2"]);
    let one = CoordinatorConfig { max_prefill_candidates: 1, ..config() };
    assert_eq!(candidates(one, infos.clone()).await.len(), 1);
    let short = CoordinatorConfig { local_prefill_below_tokens: 4, ..config() };
    assert!(candidates(short, infos.clone()).await.is_empty());
    let long = CoordinatorConfig { local_prefill_below_tokens: 3, ..config() };
    assert_eq!(candidates(long, infos).await.len(), 2);
}

#[tokio::test]
async fn a_node_with_both_roles_prefills_its_own_requests() {
    let infos = vec![node_info("both", &[Role::Decode, Role::Prefill]), node_info("p1", &[Role::Prefill])];
    assert!(candidates(config(), infos).await.is_empty());
}

#[tokio::test]
async fn without_nodes_requests_wait_a_little_and_are_told_to_come_back() {
    let cluster = Cluster::decode(&[]).await;
    let failure = cluster.coordinator.dispatch(request(1), Wishes::default()).await.err().unwrap();
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.retry_after.is_some());
    assert!(!cluster.coordinator.status().ready);
}

#[tokio::test]
async fn a_request_that_waits_is_served_when_a_node_joins() {
    let config = CoordinatorConfig { node_wait_ms: 60_000, ..config() };
    let cluster = Cluster::start(config, Vec::new()).await;
    let node = FakeNode::start(node_info("d", &[Role::Decode])).await;
    node.script([accepted(), finished(0)].map(Act::Send));
    let (answer, _registration) =
        tokio::join!(cluster.coordinator.dispatch(request(1), Wishes::default()), async {
            tokio::task::yield_now().await;
            cluster.registry.register(node.info())
        });
    assert_eq!(all(answer.unwrap()).await, [accepted(), finished(0)]);
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_unknown() {
    let cluster = Cluster::decode(&["d"]).await;
    let request = Request { model: "other".into(), ..request(1) };
    let failure = cluster.coordinator.dispatch(request, Wishes::default()).await.err().unwrap();
    assert_eq!(failure.code, ErrorCode::UnknownModel);
}

#[tokio::test]
async fn a_draining_node_gets_nothing_new() {
    let cluster = Cluster::decode(&["a", "b"]).await;
    cluster.nodes[0].set_info(NodeInfo { state: NodeState::Draining, ..cluster.nodes[0].info() });
    cluster.until("drains", |nodes| nodes[0].1 == Health::Draining).await;
    for _ in 0..4 {
        cluster.nodes[1].script([accepted(), finished(0)].map(Act::Send));
        cluster.events(request(1)).await;
    }
    assert!(cluster.nodes[0].opens().is_empty());
}

#[tokio::test]
async fn a_node_whose_entry_vanished_stays_until_it_fails_to_answer() {
    let mut cluster = Cluster::decode(&["a", "b"]).await;
    cluster.registrations.clear();
    let unannounced = || cluster.coordinator.status().nodes.iter().all(|node| !node.announced);
    cluster.until("both are unannounced", |_| unannounced()).await;
    for node in &cluster.nodes {
        node.script([accepted(), finished(0)].map(Act::Send));
    }
    for _ in 0..2 {
        assert_eq!(cluster.events(request(1)).await, [accepted(), finished(0)]);
    }
    cluster.nodes[0].set_silent(true);
    cluster.until("the silent one left", |nodes| nodes.len() == 1 && nodes[0].0 == "b").await;
    assert!(cluster.coordinator.status().ready);
}

#[tokio::test]
async fn a_new_incarnation_replaces_the_old_and_what_ran_there_is_lost() {
    let cluster = Cluster::decode(&["a"]).await;
    cluster.nodes[0].script([Act::Send(accepted()), Act::Send(token(0, 0)), Act::Hang]);
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    answer.next().await.unwrap();
    answer.next().await.unwrap();
    let again =
        FakeNode::start(NodeInfo { incarnation: Incarnation(2), ..node_info("a", &[Role::Decode]) }).await;
    again.script([accepted(), token(0, 1), finished(0)].map(Act::Send));
    let _registration = cluster.registry.register(again.info());
    assert_eq!(all(answer).await, [token(0, 1), finished(0)]);
    assert_eq!(cluster.coordinator.status().nodes.len(), 1);
}

#[tokio::test]
async fn another_process_at_the_address_is_not_the_node() {
    let cluster = Cluster::decode(&["a"]).await;
    cluster.nodes[0].set_info(NodeInfo { incarnation: Incarnation(9), ..cluster.nodes[0].info() });
    cluster.until("lost", |nodes| nodes[0].1 == Health::Lost).await;
}

#[tokio::test]
async fn load_reports_arrive() {
    let cluster = Cluster::decode(&["a"]).await;
    let running = || cluster.coordinator.status().nodes[0].load.running;
    cluster.until("a report", |_| running() == 3).await;
}

#[tokio::test]
async fn a_node_that_is_slow_beside_the_others_gets_nothing() {
    let cluster = Cluster::decode(&["a", "b", "c", "d"]).await;
    let steps = |base| LoadReport {
        decode_cost: Some(StepCost { base, unit: 0.001, context: 0.0 }),
        ..LoadReport::default()
    };
    for (node, base) in cluster.nodes.iter().zip([0.02, 0.02, 0.5, 0.02]) {
        node.set_load(steps(base));
    }
    let is_slow =
        || cluster.coordinator.status().nodes.into_iter().find(|node| node.slow).map(|node| node.id.0);
    let seen = timeout(LONG, async {
        while is_slow().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    seen.await.unwrap();
    assert_eq!(is_slow().unwrap(), "c");
    // Nor is it moved to another role, though nobody has less to do.
    let in_use = cluster.coordinator.shared.fleet.in_use(&request(1).model, tokio::time::Instant::now());
    assert_eq!(in_use.iter().map(|node| node.id().0.as_str()).collect::<Vec<_>>(), ["a", "b", "d"]);
    for node in &cluster.nodes {
        (0..8).for_each(|_| node.script([accepted(), finished(0)].map(Act::Send)));
    }
    for _ in 0..8 {
        assert_eq!(cluster.events(request(1)).await, [accepted(), finished(0)]);
    }
    let opens: Vec<_> = cluster.nodes.iter().map(|node| node.opens().len()).collect();
    assert_eq!((opens.iter().sum::<usize>(), opens[2]), (8, 0), "{opens:?}");
}

/// Rows of a prompt are only where it is computed.
#[tokio::test]
async fn a_prompt_that_is_to_be_told_of_is_computed_where_it_is_answered() {
    let infos = vec![node_info("d", &[Role::Decode]), node_info("p", &[Role::Prefill])];
    let cluster = Cluster::start(config(), infos).await;
    let asked = Some(baton_protocol::PromptLogprobs { from: 2, top: 0 });
    let told = baton_protocol::PromptToken { logprob: -1.0, rank: 1, top: Vec::new() };
    let told = Event::Prompt(baton_protocol::PromptPart { first: 2, tokens: vec![told] });
    cluster.nodes[0].script([told, token(0, 0), finished(0)].map(Act::Send).to_vec());
    cluster.events(Request { prompt_logprobs: asked, ..request(1) }).await;
    assert!(cluster.nodes[0].opens()[0].candidates.is_empty());
    cluster.nodes[0].script([token(0, 0), finished(0)].map(Act::Send).to_vec());
    cluster.events(request(1)).await;
    assert_eq!(cluster.nodes[0].opens()[1].candidates[0].node, "p");
}

#[tokio::test]
async fn a_prefill_node_that_is_slow_beside_the_others_is_not_named() {
    let names = ["p1", "p2", "p3", "p4"];
    let prefill = names.map(|name| node_info(name, &[Role::Prefill]));
    let cluster = Cluster::start(config(), [&[node_info("d", &[Role::Decode])], &prefill[..]].concat()).await;
    for (node, unit) in cluster.nodes[1..].iter().zip([1e-4, 1e-4, 1e-4, 1e-3]) {
        let cost = Some(StepCost { base: 0.01, unit, context: 0.0 });
        node.set_load(LoadReport { prefill_cost: cost, ..LoadReport::default() });
    }
    let status = || cluster.coordinator.status().nodes.into_iter();
    let seen = timeout(LONG, async {
        while !status().any(|node| node.slow) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    seen.await.unwrap();
    assert_eq!(status().filter(|node| node.slow).map(|node| node.id.0).collect::<Vec<_>>(), ["p4"]);
    for _ in 0..8 {
        cluster.nodes[0].script([accepted(), finished(0)].map(Act::Send));
        cluster.events(request(1)).await;
    }
    let opens = cluster.nodes[0].opens().into_iter();
    let asked: BTreeSet<_> = opens.flat_map(|open| open.candidates).map(|candidate| candidate.node).collect();
    assert_eq!(asked.iter().map(String::as_str).collect::<Vec<_>>(), names[..3]);
}

#[tokio::test]
async fn nodes_with_another_tokenizer_get_no_tokens_of_a_model_of_the_same_name() {
    let other = NodeInfo { text_digest: "00".into(), ..node_info("b", &[Role::Decode]) };
    let cluster = Cluster::start(config(), vec![node_info("a", &[Role::Decode]), other]).await;
    let text = cluster.coordinator.models().remove(0).text_digest;
    let at = cluster.nodes.iter().position(|node| node.info().text_digest == text).unwrap();
    for _ in 0..4 {
        for node in &cluster.nodes {
            node.script([accepted(), finished(0)].map(Act::Send));
        }
        cluster.events(request(1)).await;
    }
    assert_eq!((cluster.nodes[at].opens().len(), cluster.nodes[1 - at].opens().len()), (4, 0));
    // The other's text is the model's when nobody has this one.
    cluster.nodes[at].set_silent(true);
    let changed = || cluster.coordinator.models().remove(0).text_digest != text;
    cluster.until("the other's text", |_| changed()).await;
    assert_eq!(cluster.events(request(1)).await, [accepted(), finished(0)]);
}
