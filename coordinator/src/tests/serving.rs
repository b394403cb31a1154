//! Requests that go well, end early or are refused.

use baton_protocol::{ErrorCode, TopLogprob};
use prometheus_client::encoding::text::encode;

use super::{fake::Act, *};

fn sends(events: impl IntoIterator<Item = Event>) -> Vec<Act> {
    events.into_iter().map(Act::Send).collect()
}

#[tokio::test]
async fn events_come_in_order_and_the_bill_before_the_last_end() {
    let cluster = Cluster::decode(&["d"]).await;
    let events = [accepted(), token(0, 0), token(1, 0), finished(1), token(0, 1), bill(2), finished(0)];
    cluster.nodes[0].script(sends(events.clone()));
    assert_eq!(cluster.events(request(2)).await, events);

    let open = cluster.nodes[0].opens().remove(0);
    assert_eq!((open.attempt, open.journal.len()), (0, 2));
    let sent = Request::try_from(open.request.unwrap()).unwrap();
    assert!(sent.deadline <= LONG);
    assert_eq!(Request { deadline: LONG, ..sent }, request(2));
}

#[tokio::test]
async fn the_bill_is_moved_before_the_last_end_and_nothing_follows() {
    let cluster = Cluster::decode(&["d"]).await;
    let sent =
        [accepted(), bill(2), token(0, 0), finished(1), finished(0), token(0, 1), finished(0), bill(3)];
    cluster.nodes[0].script(sends(sent));
    let expected = [accepted(), token(0, 0), finished(1), bill(2), finished(0)];
    assert_eq!(cluster.events(request(2)).await, expected);
}

#[tokio::test]
async fn repeated_tokens_are_dropped() {
    let cluster = Cluster::decode(&["d"]).await;
    let sent = [accepted(), token(0, 0), token(0, 0), token(0, 1), token(0, 0), token(0, 2), finished(0)];
    cluster.nodes[0].script(sends(sent));
    let expected = [accepted(), token(0, 0), token(0, 1), token(0, 2), finished(0)];
    assert_eq!(cluster.events(request(1)).await, expected);
}

#[tokio::test]
async fn a_stopped_choice_ends_once_and_the_others_go_on() {
    let cluster = Cluster::decode(&["d"]).await;
    let before = [accepted(), token(0, 0), token(1, 0)];
    let after = [token(0, 1), finished(0), token(1, 1), bill(2), finished(1)];
    cluster.nodes[0].script([sends(before), vec![Act::AwaitStop(0)], sends(after)].concat());
    let mut answer = cluster.coordinator.dispatch(request(2), Wishes::default()).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 3 {
        events.push(answer.next().await.unwrap());
    }
    answer.stop_choice(0);
    answer.stop_choice(0);
    answer.stop_choice(9);
    events.extend(all(answer).await);
    let expected = [accepted(), token(0, 0), token(1, 0), finished(0), token(1, 1), bill(2), finished(1)];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn stopping_the_last_choice_still_brings_the_bill() {
    let cluster = Cluster::decode(&["d"]).await;
    let (before, after) = ([accepted(), token(0, 0)], [token(0, 1), bill(2), finished(0)]);
    cluster.nodes[0].script([sends(before), vec![Act::AwaitStop(0)], sends(after)].concat());
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    answer.next().await.unwrap();
    answer.next().await.unwrap();
    answer.stop_choice(0);
    assert_eq!(all(answer).await, [bill(2), finished(0)]);
}

#[tokio::test]
async fn stopping_the_last_choice_ends_even_without_a_bill() {
    let cluster = Cluster::decode(&["d"]).await;
    cluster.nodes[0].script([sends([accepted(), token(0, 0)]), vec![Act::Hang]].concat());
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    answer.next().await.unwrap();
    answer.stop_choice(0);
    assert_eq!(all(answer).await.last(), Some(&finished(0)));
    cluster.nodes[0].ended(1).await;
}

#[tokio::test]
async fn dropping_the_answer_cancels() {
    let cluster = Cluster::decode(&["d"]).await;
    cluster.nodes[0].script([sends([accepted(), token(0, 0)]), vec![Act::Hang]].concat());
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    answer.next().await.unwrap();
    drop(answer);
    timeout(LONG, cluster.nodes[0].ended(1)).await.unwrap();
    assert_eq!(cluster.coordinator.status().nodes[0].in_flight, 0);
}

#[tokio::test]
async fn the_deadline_ends_an_answer_and_the_work_behind_it() {
    let cluster = Cluster::decode(&["d"]).await;
    cluster.nodes[0].script([sends([accepted(), token(0, 0)]), vec![Act::Hang]].concat());
    let hurried = Request { deadline: Duration::from_secs(2), ..request(1) };
    let events = cluster.events(hurried).await;
    assert_eq!(events[..2], [accepted(), token(0, 0)]);
    let [Event::Failed(failure)] = &events[2..] else { panic!("{events:?}") };
    assert_eq!(failure.code, ErrorCode::DeadlineExceeded);
    cluster.nodes[0].ended(1).await;
}

#[tokio::test]
async fn more_than_admitted_are_refused() {
    let config = CoordinatorConfig { max_running: 1, max_waiting: 0, ..config() };
    let cluster = Cluster::start(config, vec![node_info("d", &[Role::Decode])]).await;
    cluster.nodes[0].script([sends([accepted()]), vec![Act::Hang]].concat());
    cluster.nodes[0].script(sends([accepted(), finished(0)]));
    let held = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    let refused = cluster.coordinator.dispatch(request(1), Wishes::default()).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after.is_some());
    drop(held);
    assert_eq!(cluster.events(request(1)).await, [accepted(), finished(0)]);
}

#[tokio::test]
async fn the_model_text_is_fetched_by_digest() {
    let cluster = Cluster::decode(&["d"]).await;
    assert_eq!(&*cluster.coordinator.model_text("mock").await.unwrap(), fake::TEXT);
    let unknown = cluster.coordinator.model_text("other").await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::UnknownModel);
    let served: Vec<_> = cluster.coordinator.models().into_iter().map(|model| model.name).collect();
    assert_eq!(served, ["mock"]);
}

#[tokio::test]
async fn a_sequence_may_be_as_long_as_every_node_can_hold() {
    let sized = |id, pages| NodeInfo { pages, ..node_info(id, &[Role::Decode]) };
    for (pages, longest) in [([8, 3], 48), ([2, 8], 32), ([8, 8], 64)] {
        let nodes = vec![sized("a", pages[0]), sized("b", pages[1])];
        let cluster = Cluster::start(config(), nodes).await;
        let model = cluster.coordinator.models().remove(0);
        assert_eq!((model.context_tokens, model.longest()), (64, longest), "{pages:?}");
    }
}

#[tokio::test]
async fn a_text_of_another_digest_is_not_taken() {
    let info = NodeInfo { text_digest: "00".into(), ..node_info("d", &[Role::Decode]) };
    let cluster = Cluster::start(config(), vec![info]).await;
    let failure = cluster.coordinator.model_text("mock").await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::PeerLost);
}

#[tokio::test]
async fn outcomes_times_and_nodes_are_counted() {
    let cluster = Cluster::decode(&["d"]).await;
    cluster.nodes[0].script(sends([accepted(), token(0, 0), token(0, 1), bill(0), finished(0)]));
    cluster.nodes[0].script([sends([accepted()]), vec![Act::Hang]].concat());
    cluster.events(request(1)).await;
    drop(cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap());
    let mut registry = prometheus_client::registry::Registry::default();
    cluster.coordinator.metrics().register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "requests_total{outcome=\"ok\"} 1",
        "requests_total{outcome=\"cancelled\"} 1",
        "attempts_total 2",
        "nodes{health=\"ready\"} 1",
        "nodes{health=\"lost\"} 0",
        "time_to_first_token_seconds_count 1",
        "inter_token_latency_seconds_count 1",
        "request_time_per_output_token_seconds_count 1",
        "e2e_request_latency_seconds_count 2",
        "request_queue_time_seconds_count 1",
        "handoff_exposed_seconds_count 0",
    ] {
        assert!(text.lines().any(|known| known == line), "no {line:?} in\n{text}");
    }
}

#[tokio::test]
async fn shutdown_ends_the_checks() {
    let cluster = Cluster::decode(&["d"]).await;
    timeout(LONG, cluster.tasks.shutdown()).await.unwrap();
}

/// A token with as much beside it as fills a stream's window soon.
fn large(position: u32) -> Event {
    let top = (0..4000).map(|id| TopLogprob { id, logprob: -1.0 }).collect();
    Event::Token(Token { choice: 0, position, id: position, logprob: Some(-1.0), top })
}

#[tokio::test]
async fn readers_that_do_not_read_hold_up_nobody_else() {
    let cluster = Cluster::decode(&["d"]).await;
    let mut unread = Vec::new();
    for _ in 0..16 {
        cluster.nodes[0].script(sends([accepted()].into_iter().chain((0..60).map(large))));
        unread.push(cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap());
    }
    for _ in 0..30 {
        let events = [accepted(), token(0, 0), finished(0)];
        cluster.nodes[0].script(sends(events.clone()));
        assert_eq!(timeout(LONG, cluster.events(request(1))).await.unwrap(), events);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = cluster.nodes[0].described();
    cluster.until("it says again who it is", |_| cluster.nodes[0].described() > asked + 1).await;
    assert_eq!(cluster.coordinator.status().nodes[0].health, Health::Ready);
    assert_eq!(all(unread.remove(0)).await.len(), 62);
}
