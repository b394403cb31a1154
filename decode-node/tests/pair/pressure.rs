//! Too little memory, too little time, nodes that take no more.

use std::time::Duration;

use baton_engine::backend::mock::MockConfig;
use baton_protocol::{ErrorCode, Intake, wire::ChoiceJournal};
use futures::future::join_all;
use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::{
    call::{Call, answer, open, request},
    sandbox::{Sandbox, Settings, prompt},
};

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_pools_that_hold_few() {
    let settings = Settings { prefills: 2, prefill_pages: 40, decode_pages: 30, ..Settings::default() };
    let cluster = Sandbox::start(settings).await;
    let requests: Vec<_> = (0..24)
        .map(|seed| request(prompt(seed, 60 + 7 * seed as usize), seed, 1 + seed as u32 % 3, 30))
        .collect();
    let calls = requests.iter().enumerate().map(|(index, request)| {
        let mut candidates = cluster.candidates();
        candidates.rotate_left(index % 2);
        answer(&cluster.decode, open(request, candidates))
    });
    let answers = join_all(calls).await;
    for (request, split) in requests.iter().zip(answers) {
        assert_eq!(split.failure, None);
        assert_eq!(split.choices, cluster.local(request).await.choices);
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_larger_than_any_promise_is_prefilled_here() {
    // Four fifths of 20 pages are promised at most; this prompt needs 18.
    let cluster = Sandbox::start(Settings { decode_pages: 20, ..Settings::default() }).await;
    let request = request(prompt(41, 280), 41, 1, 10);
    let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert_eq!(split.bill().prefill_node, None);
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_prefill_nodes_are_busy_the_decode_node_prefills_or_says_so() {
    for allow_local in [true, false] {
        let mut settings = Settings { prefills: 2, ..Settings::default() };
        settings.decode.allow_local = allow_local;
        let cluster = Sandbox::start(settings).await;
        for prefill in &cluster.prefills {
            prefill.node.drain().await;
        }
        let request = request(prompt(42, 100), 42, 2, 5);
        let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        if allow_local {
            assert_eq!(split.choices, cluster.local(&request).await.choices);
            assert_eq!(split.bill().prefill_node, None);
        } else {
            let failure = split.failure.unwrap();
            assert_eq!(failure.code, ErrorCode::Overloaded);
            assert!(failure.retry_after.is_some());
        }
        cluster.settles().await;
        // Once they take work again, they get it.
        for prefill in &cluster.prefills {
            prefill.node.set_intake(Intake::Open);
        }
        let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!(split.bill().prefill_node.as_ref(), Some(&cluster.prefills[0].id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_memory_and_not_allowed_to_prefill_the_node_says_so_at_once() {
    let mut settings = Settings { prefills: 2, decode_pages: 20, ..Settings::default() };
    settings.decode.allow_local = false;
    settings.decode.promise_wait_ms = 50;
    let cluster = Sandbox::start(settings).await;
    let pages = cluster.decode.engine.pool().allocate(15).unwrap();
    let request = request(prompt(46, 100), 46, 1, 5);
    let refused = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!(refused.failure.as_ref().map(|failure| failure.code), Some(ErrorCode::Overloaded));
    assert!(refused.failure.unwrap().retry_after.is_some());
    // Memory that comes back while it waits is taken.
    let call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
    drop(pages);
    let split = call.finish().await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert_eq!(split.bill().prefill_node.as_ref(), Some(&cluster.prefills[0].id));
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_how_they_end() {
    let mock = MockConfig { decode_us_per_sequence: 1_000, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    let short = request(prompt(47, 20), 47, 1, 3);
    answer(&cluster.decode, open(&short, cluster.candidates())).await;
    answer(&cluster.decode, open(&short, Vec::new())).await;
    let long = request(prompt(48, 20), 48, 1, 4000);
    let mut call = Call::open(&cluster.decode, open(&long, cluster.candidates())).await;
    call.next().await;
    drop(call);
    cluster.decode.node.drain().await;
    answer(&cluster.decode, open(&short, Vec::new())).await;
    let (mut registry, mut text) = (Registry::default(), String::new());
    cluster.decode.node.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    for line in [
        "decode_attempts_running 0",
        "decode_attempts_total{outcome=\"answered\"} 2",
        "decode_attempts_total{outcome=\"cancelled\"} 1",
        "decode_attempts_total{outcome=\"unavailable\"} 1",
        "decode_local_prefills_total 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_up_is_a_failure_and_gives_everything_back() {
    // 1000 tokens at 1 ms each on either side: never done in time.
    let mock = MockConfig { prefill_us_per_token: 1_000, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    let mut request = request(prompt(43, 1000), 43, 1, 5);
    request.deadline = Duration::from_millis(100);
    for candidates in [cluster.candidates(), Vec::new()] {
        let late = answer(&cluster.decode, open(&request, candidates)).await;
        assert_eq!(late.failure.unwrap().code, ErrorCode::DeadlineExceeded);
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let cluster = Sandbox::start(Settings::default()).await;
    let sane = request(prompt(44, 40), 44, 2, 5);
    let mut foreign_token = sane.clone();
    foreign_token.tokens[3] = 1 << 20;
    let mut short_journal = open(&sane, cluster.candidates());
    short_journal.journal = vec![ChoiceJournal { tokens: vec![1], finished: false }];
    let opens = [open(&foreign_token, cluster.candidates()), open(&foreign_token, Vec::new()), short_journal];
    for open in opens {
        // The journal's shape is checked by the node, not by the test's own answer.
        let mut call = Call::open(&cluster.decode, open).await;
        while call.next().await.is_some() {}
        assert_eq!(call.answer.failure.map(|failure| failure.code), Some(ErrorCode::InvalidRequest));
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_ends_what_it_has_and_takes_no_more() {
    let mock = MockConfig { decode_us_per_sequence: 2_000, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    let request = request(prompt(45, 50), 45, 1, 20);
    let mut call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
    call.until(|answer| !answer.choices[0].tokens.is_empty()).await;
    let late = async {
        while cluster.decode.node.intake() == Intake::Open {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        answer(&cluster.decode, open(&request, cluster.candidates())).await
    };
    let ((), old, late) = tokio::join!(cluster.decode.node.drain(), call.finish(), late);
    assert_eq!(old.choices, cluster.local(&request).await.choices);
    assert_eq!(late.failure.unwrap().code, ErrorCode::Unavailable);
    cluster.settles().await;
    cluster.decode.node.set_intake(Intake::Open);
    let again = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!(again.choices, old.choices);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_before_goes_on_when_the_role_is_gone() {
    let mock = MockConfig { decode_us_per_sequence: 2_000, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    let request = request(prompt(46, 50), 46, 1, 20);
    let mut call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
    call.until(|answer| !answer.choices[0].tokens.is_empty()).await;
    cluster.decode.node.set_intake(Intake::Moved);
    assert_eq!(cluster.decode.node.attempts(), 1);
    let late = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!(late.failure.unwrap().code, ErrorCode::Moved);
    assert_eq!(call.finish().await.choices, cluster.local(&request).await.choices);
    cluster.settles().await;
}
