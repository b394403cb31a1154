//! The real model while nodes are killed and clients leave: whoever stays gets the answer
//! of a single process, token for token, and every page comes back. On a card with
//! `BATON_TEST_SET="engine.backend=cuda engine.deterministic=true"`.

use std::time::Duration;

use baton_protocol::PageCounts;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    counts::counts,
    parity::{Random, request},
    sandbox::{Cluster, Outcome, Plan, StreamedAnswer, complete, complete_until, eventually},
};

/// Small pools, so that five processes fit on a card.
const SETTINGS: &str = r#"
cluster = "losses"
model = "smollm2-135m"

[engine]
kv_memory_mib = 128

[frontend]
listen = "127.0.0.1:0"
"#;

/// Each frame is held back, so that a loss finds handoffs on their way.
const SLOW_FRAMES: &str = r#"
[transfer]
transport = "tcp"
frame_bytes = 131072

[transfer.faults]
seed = 5
delay_probability = 1.0
max_delay_ms = 20
"#;

/// Time for pages of a lost node's requests to come back.
const AFTER_LOSS: Duration = Duration::from_secs(30);

/// A cluster of processes and a single one of the same model.
struct Pair {
    split: Cluster,
    local: Cluster,
}

impl Pair {
    async fn start() -> Self {
        let local = Cluster::start_embedded(SETTINGS).await;
        let settings = SETTINGS.to_owned() + SLOW_FRAMES;
        Self { split: Cluster::start(&Plan { settings, prefill: 2, decode: 2 }).await, local }
    }

    async fn expected(&self, bodies: &[Value]) -> Vec<StreamedAnswer> {
        let Cluster { http, url, .. } = &self.local;
        join_all(bodies.iter().map(|body| complete(http, url, body))).await
    }

    /// Kills `node` once it is at work on some requests, none of which notices.
    async fn lose(&mut self, node: &str, is_at_work: fn(&PageCounts) -> bool) {
        for round in 0..counts().chaos_rounds as u64 {
            let bodies = bodies(round, 8, 60);
            let expected = self.expected(&bodies).await;
            let (http, url) = (self.split.http.clone(), self.split.url.clone());
            let streams = join_all(bodies.iter().map(|body| complete(&http, &url, body)));
            let split = &mut self.split;
            let losing = async {
                let busy = || async { split.pages(node).await.filter(is_at_work).map(drop) };
                eventually("the node to be at work", busy).await;
                split.kill(node);
            };
            let (answers, ()) = tokio::join!(streams, losing);
            for ((found, expected), body) in answers.iter().zip(&expected).zip(&bodies) {
                assert_same(found, expected, body);
            }
            self.split.wait_until_idle(AFTER_LOSS).await;
            self.split.start_node(node);
            self.split.wait_for_members(4).await;
        }
    }
}

/// Requests of the same text in every run.
fn bodies(seed: u64, count: usize, max_tokens: u64) -> Vec<Value> {
    let mut random = Random(seed);
    let mut earlier = Vec::new();
    let body = |_| {
        let (mut body, prompt) = request(&mut random, &earlier);
        earlier.push(prompt);
        body["max_tokens"] = json!(max_tokens);
        body["ignore_eos"] = json!(true);
        body
    };
    (0..count).map(body).collect()
}

fn assert_same(found: &StreamedAnswer, expected: &StreamedAnswer, body: &Value) {
    assert_eq!(expected.outcome, Outcome::Done, "{expected:?}");
    assert_eq!(found.outcome, Outcome::Done, "{found:?}");
    assert_eq!((&found.texts, &found.reasons), (&expected.texts, &expected.reasons), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_node_of_the_real_model_is_killed_while_it_sends() {
    Pair::start().await.lose("prefill-1", |pages| pages.sending > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_node_of_the_real_model_is_killed_while_it_generates() {
    Pair::start().await.lose("decode-1", |pages| pages.running > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_real_model_leave_and_others_do_not_notice() {
    let pair = Pair::start().await;
    let bodies = bodies(77, 16, 24);
    let expected = pair.expected(&bodies).await;
    let Cluster { http, url, .. } = &pair.split;
    let streams = bodies.iter().zip(&expected).enumerate().map(|(index, (body, expected))| async move {
        let stays = index % 2 == 0;
        let leave_after = (index * 13) % 50;
        let answer =
            complete_until(http, url, body, |answer| !stays && answer.texts[0].len() > leave_after).await;
        if stays {
            assert_same(&answer, expected, body);
        }
        for (text, expected) in answer.texts.iter().zip(&expected.texts) {
            assert!(expected.starts_with(text.as_str()), "{text:?} is not how {expected:?} begins");
        }
    });
    join_all(streams).await;
    pair.split.wait_until_idle(AFTER_LOSS).await;
}
