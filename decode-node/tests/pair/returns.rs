//! KV that goes back when a turn has ended, and the next turn that finds it.

use std::time::Duration;

use baton_protocol::Request;
use tokio::time::{Instant, timeout};

use crate::{
    call::{Answer, PATIENCE, answer, open, request},
    sandbox::{Sandbox, Settings, prompt},
};

/// Far more than loopback can do.
const UNLIMITED: u64 = 1 << 50;

fn settings(bytes_per_second: u64) -> Settings {
    let mut settings = Settings { prefill_page_tokens: 8, ..Settings::default() };
    settings.transfer.return_bytes_per_second = bytes_per_second;
    settings
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, polled).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The same conversation, with its answer and a new question.
fn next_turn(first: &Request, answer: &Answer) -> Request {
    request([&first.tokens, answer.tokens()[0], &prompt(99, 20)].concat(), 7, 1, 8)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_turn_finds_the_answer_on_the_prefill_node() {
    let cluster = Sandbox::start(settings(UNLIMITED)).await;
    let prefill = &cluster.prefills[0];
    let first = request(prompt(1, 50), 1, 1, 100);
    let turn = answer(&cluster.decode, open(&first, cluster.candidates())).await;
    // 149 tokens have KV: nine pages of 16 there, and 18 of 8 here, of which the prompt is six.
    until("the answer is back", || prefill.node.metrics().returned_tokens() == 144 - 48).await;
    cluster.settles().await;
    let computed = prefill.node.metrics().computed_tokens();
    // The decode node knows nothing any more: everything comes from the prefill node.
    cluster.decode.engine.pool().flush_cache();
    let second = next_turn(&first, &turn);
    let split = answer(&cluster.decode, open(&second, cluster.candidates())).await;
    // The mock checks every row it stands on, so wrong KV would be a failure.
    assert_eq!(split.choices, cluster.local(&second).await.choices);
    assert_eq!((split.cached_tokens, split.bill().cached_tokens), (Some(0), 144));
    assert_eq!(prefill.node.metrics().computed_tokens() - computed, 170 - 144);
    assert_eq!(split.bill().transfer_bytes, cluster.token_bytes() * 170);
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_budget_nothing_goes_back() {
    let cluster = Sandbox::start(settings(0)).await;
    let first = request(prompt(1, 50), 1, 1, 100);
    let turn = answer(&cluster.decode, open(&first, cluster.candidates())).await;
    cluster.decode.engine.pool().flush_cache();
    let split = answer(&cluster.decode, open(&next_turn(&first, &turn), cluster.candidates())).await;
    assert_eq!(split.bill().cached_tokens, 48);
    assert!(cluster.prefills[0].sessions.reports().is_empty());
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_keeps_to_its_budget_and_holds_up_nobody() {
    // 96 tokens in a quarter of a second.
    let token_bytes = 4 * 32;
    let cluster = Sandbox::start(settings(4 * 96 * token_bytes)).await;
    assert_eq!(cluster.token_bytes(), token_bytes);
    let prefill = &cluster.prefills[0];
    let first = request(prompt(1, 50), 1, 1, 100);
    answer(&cluster.decode, open(&first, cluster.candidates())).await;
    let ended = Instant::now();
    // Other requests meanwhile, answered before it is through or after.
    for seed in 2..6 {
        let other = request(prompt(seed, 60), seed, 1, 1);
        let split = answer(&cluster.decode, open(&other, cluster.candidates())).await;
        assert_eq!(split.choices, cluster.local(&other).await.choices);
    }
    until("the answer is back", || prefill.node.metrics().returned_tokens() == 96).await;
    assert!(ended.elapsed() >= Duration::from_millis(200), "faster than the budget");
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_may_be_cut_off_at_any_time() {
    for (round, delay_ms) in [0, 5, 20, 60, 120].into_iter().enumerate() {
        for prefill_dies in [true, false] {
            let mut cluster = Sandbox::start(settings(4 * 96 * 128)).await;
            let first = request(prompt(round as u64, 50), 1, 1, 100);
            answer(&cluster.decode, open(&first, cluster.candidates())).await;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            if prefill_dies {
                cluster.prefills[0].kill().await;
            } else {
                cluster.decode.returning.shutdown().await;
            }
            cluster.settles().await;
            if !prefill_dies {
                // What did not come back is computed, and the answer is right.
                let again = request(prompt(round as u64, 90), 1, 1, 10);
                let split = answer(&cluster.decode, open(&again, cluster.candidates())).await;
                assert_eq!(split.choices, cluster.local(&again).await.choices);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn returns_give_way_to_prompts_that_wait_for_pages() {
    // It would take half a minute.
    let cluster = Sandbox::start(Settings { prefill_pages: 160, ..settings(96 * 128 / 30) }).await;
    let prefill = &cluster.prefills[0];
    let first = request(prompt(1, 50), 1, 1, 100);
    answer(&cluster.decode, open(&first, cluster.candidates())).await;
    until("the return has begun", || prefill.engine.pool().counts().receiving > 0).await;
    // 150 pages, of which the return leaves 142.
    let large = request(prompt(2, 1200), 2, 1, 4);
    let split = answer(&cluster.decode, open(&large, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&large).await.choices);
    assert_eq!(split.bill().prefill_node.as_ref(), Some(&prefill.id));
    assert_eq!(prefill.node.metrics().returned_tokens(), 0);
    cluster.settles().await;
}
