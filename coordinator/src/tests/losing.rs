//! Nodes that die, stop, lie or refuse.

use baton_protocol::{ErrorCode, Failure, Pooling, PromptLogprobs, PromptPart, PromptToken};

use super::{fake::Act, *};

fn then(events: impl IntoIterator<Item = Event>, last: Act) -> Vec<Act> {
    events.into_iter().map(Act::Send).chain([last]).collect()
}

/// Two nodes, each with one script. Routing takes turns over the nodes by
/// name, so the first attempt of the first request goes to the first.
async fn two(first: Vec<Act>, second: Vec<Act>) -> Cluster {
    let cluster = Cluster::decode(&["a", "b"]).await;
    cluster.nodes[0].script(first);
    cluster.nodes[1].script(second);
    cluster
}

#[tokio::test]
async fn another_node_goes_on_where_the_first_died() {
    let sent =
        [accepted(), token(0, 0), token(1, 0), token(2, 0), token(2, 1), finished(2), token(0, 1), bill(1)];
    // The second may replay what it was told, and goes on.
    let resumed = [accepted(), token(1, 0), token(1, 1), token(0, 2), finished(1), bill(2), finished(0)];
    let cluster = two(then(sent, Act::Break), resumed.map(Act::Send).to_vec()).await;
    let expected = [
        accepted(),
        token(0, 0),
        token(1, 0),
        token(2, 0),
        token(2, 1),
        finished(2),
        token(0, 1),
        token(1, 1),
        token(0, 2),
        finished(1),
        bill(2),
        finished(0),
    ];
    assert_eq!(cluster.events(request(3)).await, expected);
    let open = cluster.nodes[1].opens().remove(0);
    assert_eq!(open.attempt, 1);
    let journal: Vec<_> = open.journal.into_iter().map(|choice| (choice.tokens, choice.finished)).collect();
    assert_eq!(journal, [(vec![0, 1], false), (vec![1000], false), (vec![2000, 2001], true)]);
}

#[tokio::test]
async fn an_answer_that_has_begun_does_not_go_on_with_another_model_of_the_same_name() {
    let other = NodeInfo { model_fingerprint: "other".into(), ..node_info("b", &[Role::Decode]) };
    for (begun, other_goes_on) in [(vec![accepted(), token(0, 0)], false), (vec![accepted()], true)] {
        let infos = vec![node_info("a", &[Role::Decode]), other.clone()];
        let cluster = Cluster::start(config(), infos).await;
        cluster.nodes[0].script(then(begun, Act::Break));
        for node in &cluster.nodes {
            node.script([accepted(), finished(0)].map(Act::Send));
        }
        assert_eq!(cluster.events(request(1)).await.pop(), Some(finished(0)));
        assert_eq!(!cluster.nodes[1].opens().is_empty(), other_goes_on);
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_is_a_loss() {
    let cluster = two(
        vec![Act::Send(accepted()), Act::Send(token(0, 0))],
        [accepted(), token(0, 1), finished(0)].map(Act::Send).to_vec(),
    )
    .await;
    let expected = [accepted(), token(0, 0), token(0, 1), finished(0)];
    assert_eq!(cluster.events(request(1)).await, expected);
}

#[tokio::test]
async fn a_gap_is_an_error_of_the_attempt() {
    let cluster = two(
        then([accepted(), token(0, 0), token(0, 2), token(0, 1)], Act::Hang),
        [accepted(), token(0, 1), finished(0)].map(Act::Send).to_vec(),
    )
    .await;
    let expected = [accepted(), token(0, 0), token(0, 1), finished(0)];
    assert_eq!(cluster.events(request(1)).await, expected);
    timeout(LONG, cluster.nodes[0].ended(1)).await.unwrap();
}

#[tokio::test]
async fn a_retryable_failure_moves_on_and_another_does_not() {
    let failed = |code| Event::Failed(Failure::new(code, "no"));
    let finish = [accepted(), finished(0)].map(Act::Send).to_vec();
    let cluster = two(vec![Act::Send(failed(ErrorCode::Overloaded))], finish.clone()).await;
    assert_eq!(cluster.events(request(1)).await, [accepted(), finished(0)]);

    let cluster = two(vec![Act::Send(failed(ErrorCode::InvalidRequest))], finish.clone()).await;
    let failure = cluster.coordinator.dispatch(request(1), Wishes::default()).await.err().unwrap();
    assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::InvalidRequest, "no"));

    let cluster = two(then([accepted(), token(0, 0)], Act::Send(failed(ErrorCode::Internal))), finish).await;
    let events = cluster.events(request(1)).await;
    assert_eq!(events, [accepted(), token(0, 0), failed(ErrorCode::Internal)]);
}

#[tokio::test]
async fn attempts_are_limited() {
    let cluster = Cluster::decode(&["a"]).await;
    for position in 0..3 {
        cluster.nodes[0].script(then([accepted(), token(0, position)], Act::Break));
    }
    let events = cluster.events(request(1)).await;
    assert_eq!(events[..4], [accepted(), token(0, 0), token(0, 1), token(0, 2)]);
    let [Event::Failed(failure)] = &events[4..] else { panic!("{events:?}") };
    assert_eq!(failure.code, ErrorCode::PeerLost);
    assert_eq!(cluster.nodes[0].opens().len(), 3);
}

#[tokio::test]
async fn a_choice_that_lacks_only_its_end_needs_no_further_attempt() {
    let cluster = Cluster::decode(&["a"]).await;
    cluster.nodes[0].script(then([accepted(), token(0, 0), token(0, 1)], Act::Break));
    let mut short = request(1);
    short.stop.max_tokens = 2;
    let end = Event::Finished { choice: 0, reason: FinishReason::Length };
    assert_eq!(cluster.events(short).await, [accepted(), token(0, 0), token(0, 1), end]);
}

#[tokio::test]
async fn a_stopped_node_is_left_when_its_checks_call_it_lost() {
    let cluster = two(
        then([accepted(), token(0, 0)], Act::Hang),
        [accepted(), token(0, 1), finished(0)].map(Act::Send).to_vec(),
    )
    .await;
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    assert_eq!(answer.next().await, Some(accepted()));
    assert_eq!(answer.next().await, Some(token(0, 0)));
    let stopped = &cluster.nodes[0];
    stopped.set_silent(true);
    assert_eq!(all(answer).await, [token(0, 1), finished(0)]);

    stopped.set_silent(false);
    cluster.until("found again", |nodes| nodes.iter().all(|(_, health)| *health == Health::Ready)).await;
}

#[tokio::test]
async fn a_slow_node_that_answers_is_waited_for() {
    let cluster = Cluster::decode(&["a"]).await;
    let acts = [accepted(), token(0, 0)].map(Act::Send).to_vec();
    cluster.nodes[0].script([acts, vec![Act::AwaitGo, Act::Send(finished(0))]].concat());
    let mut answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    answer.next().await.unwrap();
    answer.next().await.unwrap();
    let pause = Duration::from_millis(200) * 6;
    assert!(timeout(pause, answer.next()).await.is_err(), "nothing was sent");
    cluster.nodes[0].go();
    assert_eq!(all(answer).await, [finished(0)]);
    assert_eq!(cluster.nodes[0].opens().len(), 1);
}

#[tokio::test]
async fn a_node_that_reports_is_not_lost_though_it_does_not_answer() {
    let cluster = Cluster::decode(&["a", "b"]).await;
    cluster.nodes[0].set_silent(true);
    cluster.nodes[1].set_silent(true);
    cluster.nodes[1].report_often();
    cluster.until("the mute one is lost", |nodes| nodes[0].1 == Health::Lost).await;
    assert_eq!(cluster.coordinator.status().nodes[1].health, Health::Ready);
}

#[tokio::test]
async fn a_node_that_failed_a_request_is_not_asked_again_while_another_is_ready() {
    let overloaded = Event::Failed(Failure::new(ErrorCode::Overloaded, "no"));
    let cluster = Cluster::decode(&["a", "b"]).await;
    cluster.nodes[0].script([Act::Send(accepted()), Act::AwaitGo, Act::Send(overloaded)]);
    cluster.nodes[1].script([accepted(), finished(0)].map(Act::Send));
    cluster.nodes[1].script([accepted(), finished(0)].map(Act::Send));
    let answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    // Takes the second node's turn: by turns alone, the first would be next.
    cluster.events(request(1)).await;
    cluster.nodes[0].go();
    assert_eq!(all(answer).await, [accepted(), finished(0)]);
    assert_eq!(cluster.nodes.iter().map(|node| node.opens().len()).collect::<Vec<_>>(), [1, 2]);
}

/// Each goes on with its script once it has an attempt, and answers nobody any more.
async fn die_in_turn(nodes: [&FakeNode; 2]) {
    for node in nodes {
        timeout(LONG, async {
            while node.opens().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        node.set_silent(true);
        node.go();
    }
}

#[tokio::test]
async fn a_request_that_two_nodes_die_of_is_not_tried_on_a_third() {
    let cluster = Cluster::decode(&["a", "b", "c"]).await;
    // In the order in which they are asked.
    let [first, last, second] = &cluster.nodes[..] else { panic!("three nodes") };
    for node in [first, second] {
        node.script([Act::Send(accepted()), Act::AwaitGo, Act::Break]);
    }
    let (events, ()) = tokio::join!(cluster.events(request(1)), die_in_turn([first, second]));
    let Some(Event::Failed(failure)) = events.last() else { panic!("{events:?}") };
    assert_eq!(failure.code, ErrorCode::Internal, "{failure}");
    assert!(last.opens().is_empty());
    // Nor when its client tries again; others go on.
    let again = cluster.coordinator.dispatch(request(1), Wishes::default()).await.err().unwrap();
    assert_eq!(again, *failure);
    last.script([accepted(), finished(0)].map(Act::Send));
    let other = Request { tokens: vec![4, 5], ..request(1) };
    assert_eq!(cluster.events(other).await, [accepted(), finished(0)]);
}

/// `prefill` computes the prompt behind so many tokens.
fn computing(prefill: &str, cached_tokens: u32) -> Event {
    Event::Computing { node: Some(prefill.into()), cached_tokens }
}

fn broke_off(prefill: &str) -> Event {
    Event::BrokeOff { node: prefill.into() }
}

/// Two prefill nodes, `p` and `q`, in front of two decode nodes.
async fn split() -> Cluster {
    let of = |role: Role| move |name| node_info(name, &[role]);
    let (prefills, decodes) = (["p", "q"].map(of(Role::Prefill)), ["a", "b"].map(of(Role::Decode)));
    Cluster::start(config(), [prefills, decodes].concat()).await
}

#[tokio::test]
async fn a_prompt_that_two_prefill_nodes_die_of_is_not_tried_on_a_third() {
    for dies in [true, false] {
        let cluster = split().await;
        let [p, q, decodes @ ..] = &cluster.nodes[..] else { panic!("four nodes") };
        let lost = Event::Failed(Failure::new(ErrorCode::PeerLost, "the prefill node was lost"));
        decodes[0].script([
            Act::Send(accepted()),
            Act::Send(computing("p", 0)),
            Act::AwaitGo,
            Act::Send(broke_off("p")),
            Act::Send(broke_off("q")),
            Act::Send(lost),
        ]);
        decodes[0].script([accepted(), token(0, 0), finished(0)].map(Act::Send));
        let answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
        p.set_silent(dies);
        q.set_silent(dies);
        decodes[0].go();
        let events = all(answer).await;
        if dies {
            let [Event::Accepted { .. }, Event::Failed(failure)] = &events[..] else { panic!("{events:?}") };
            assert_eq!(failure.code, ErrorCode::Internal, "{failure}");
            assert_eq!((decodes[0].opens().len(), decodes[1].opens().len()), (1, 0));
            assert!(cluster.coordinator.dispatch(request(1), Wishes::default()).await.is_err());
        } else {
            // They live: something lay between them, and the decode node has what came.
            assert_eq!(events, [accepted(), token(0, 0), finished(0)]);
            assert_eq!(decodes[0].opens().len(), 2);
        }
    }
}

#[tokio::test]
async fn a_prompt_is_innocent_of_decode_nodes_that_wait_for_it() {
    let infos = [("p", Role::Prefill), ("a", Role::Decode), ("b", Role::Decode), ("c", Role::Decode)];
    let infos = infos.map(|(name, role)| node_info(name, &[role]));
    let cluster = Cluster::start(config(), infos.to_vec()).await;
    let decodes = &cluster.nodes[1..];
    // In the order in which they are asked.
    for node in [&decodes[0], &decodes[2]] {
        node.script([Act::Send(accepted()), Act::Send(computing("p", 0)), Act::AwaitGo, Act::Break]);
    }
    decodes[1].script([accepted(), computing("p", 8), token(0, 0), bill(9), finished(0)].map(Act::Send));
    let (events, ()) = tokio::join!(cluster.events(request(1)), die_in_turn([&decodes[0], &decodes[2]]));
    // What its own attempts left in the prefill node's cache was computed for it.
    assert_eq!(events, [accepted(), token(0, 0), bill(0), finished(0)]);
}

#[tokio::test]
async fn a_bill_tells_of_attempts_before() {
    let first = [Act::Send(accepted()), Act::Send(computing("p", 1)), Act::AwaitGo, Act::Break].to_vec();
    let second = [accepted(), computing("p", 2), token(0, 0), bill(2), finished(0)].map(Act::Send).to_vec();
    let cluster = split().await;
    cluster.nodes[2].script(first);
    cluster.nodes[3].script(second);
    let answer = cluster.coordinator.dispatch(request(1), Wishes::default()).await.unwrap();
    let waited = Duration::from_millis(50);
    tokio::time::sleep(waited).await;
    cluster.nodes[2].go();
    let events: Vec<_> = timeout(LONG, answer.collect()).await.unwrap();
    let bills =
        events.iter().filter_map(|event| if let Event::Bill(bill) = event { Some(bill) } else { None });
    let [bill] = bills.collect::<Vec<_>>()[..] else { panic!("{events:?}") };
    assert!(bill.earlier >= waited && bill.cached_tokens == 1, "{bill:?}");
}

#[tokio::test]
async fn a_request_that_had_tokens_is_innocent_of_the_deaths_around_it() {
    let cluster = Cluster::decode(&["a", "b", "c"]).await;
    cluster.nodes[0].script(then([accepted(), token(0, 0)], Act::Break));
    // The second that is asked is the third.
    cluster.nodes[2].script(then([accepted(), token(0, 1)], Act::Break));
    cluster.nodes[1].script([accepted(), token(0, 2), finished(0)].map(Act::Send));
    let expected = [accepted(), token(0, 0), token(0, 1), token(0, 2), finished(0)];
    assert_eq!(cluster.events(request(1)).await, expected);
}

#[tokio::test]
async fn what_nodes_refuse_is_retried_within_a_budget() {
    let cluster = Cluster::decode(&["a", "b"]).await;
    let refusal = || vec![Act::Send(Event::Failed(Failure::new(ErrorCode::Overloaded, "no")))];
    for _ in 0..120 {
        cluster.nodes.iter().for_each(|node| node.script(refusal()));
    }
    for _ in 0..60 {
        assert!(cluster.coordinator.dispatch(request(1), Wishes::default()).await.is_err());
    }
    let opens: usize = cluster.nodes.iter().map(|node| node.opens().len()).sum();
    // Three attempts each would be 180. What came back with time depends on the machine.
    assert!((60 + 30..180).contains(&opens), "{opens}");
}

/// What a node says of some tokens of the prompt.
fn told(first: u32, tokens: usize) -> Event {
    let token = PromptToken { logprob: -1.0, rank: 2, top: Vec::new() };
    Event::Prompt(PromptPart { first, tokens: vec![token; tokens] })
}

fn telling(from: u32) -> Request {
    let prompt_logprobs = Some(PromptLogprobs { from, top: 4 });
    Request { tokens: (0..9).collect(), prompt_logprobs, ..request(1) }
}

#[tokio::test]
async fn another_node_is_asked_for_what_was_not_told_of_the_prompt() {
    let first = then([accepted(), told(1, 3), told(4, 1)], Act::Break);
    let second = [accepted(), told(5, 4), token(0, 0), finished(0)].map(Act::Send).to_vec();
    let cluster = two(first, second).await;
    let expected = [accepted(), told(1, 3), told(4, 1), told(5, 4), token(0, 0), finished(0)];
    assert_eq!(cluster.events(telling(1)).await, expected);
    let asked = |node: usize| cluster.nodes[node].opens().remove(0).request.unwrap().prompt_logprobs;
    assert_eq!(asked(0).map(|asked| (asked.from, asked.top)), Some((1, 4)));
    assert_eq!(asked(1).map(|asked| (asked.from, asked.top)), Some((5, 4)));
}

#[tokio::test]
async fn what_was_told_of_a_prompt_is_not_asked_for_again() {
    let first = then([accepted(), told(6, 3), token(0, 0)], Act::Break);
    let second = [accepted(), token(0, 1), finished(0)].map(Act::Send).to_vec();
    let cluster = two(first, second).await;
    let expected = [accepted(), told(6, 3), token(0, 0), token(0, 1), finished(0)];
    assert_eq!(cluster.events(telling(6)).await, expected);
    assert_eq!(cluster.nodes[1].opens().remove(0).request.unwrap().prompt_logprobs, None);
}

#[tokio::test]
async fn a_prompt_told_of_wrongly_is_an_error_of_the_attempt() {
    let right = || [accepted(), told(1, 8), token(0, 0), finished(0)].map(Act::Send).to_vec();
    for wrong in [told(2, 7), told(1, 9), token(0, 0), finished(0)] {
        let cluster = two(vec![Act::Send(accepted()), Act::Send(wrong)], right()).await;
        let expected = [accepted(), told(1, 8), token(0, 0), finished(0)];
        assert_eq!(cluster.events(telling(1)).await, expected);
    }
    let unasked = two(vec![Act::Send(accepted()), Act::Send(told(1, 1))], right()[2..].to_vec()).await;
    assert_eq!(unasked.events(request(1)).await, [accepted(), token(0, 0), finished(0)]);
}

#[tokio::test]
async fn an_embedding_is_passed_on_once() {
    let vector = || Event::Embedding(vec![0.6, 0.8]);
    let asked = || Request { embedding: Some(Pooling::Mean), ..request(1) };
    // Lost before it, another node makes it; lost behind it, only the end is missing.
    let second = || [accepted(), vector(), finished(0)].map(Act::Send).to_vec();
    let cluster = two(then([accepted()], Act::Break), second()).await;
    assert_eq!(cluster.events(asked()).await, [accepted(), vector(), finished(0)]);
    let cluster = two(then([accepted(), vector()], Act::Break), second()).await;
    assert_eq!(cluster.events(asked()).await, [accepted(), vector(), finished(0)]);
    assert!(cluster.nodes[1].opens().is_empty());
    // What is no embedding, or nothing at all, is an error of the attempt.
    for wrong in [token(0, 0), finished(0)] {
        let cluster = two(vec![Act::Send(accepted()), Act::Send(wrong)], second()).await;
        assert_eq!(cluster.events(asked()).await, [accepted(), vector(), finished(0)]);
    }
}
