//! Roles are changed under load: two prefill and two decode nodes as processes
//! over a real etcd, mock backend. Nobody's answer is late, wrong or cut.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use baton_protocol::Sampling;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::sandbox::{Cluster, Operator, Outcome, Plan, complete, eventually, mock_expected};

/// A step takes some 10 ms: an answer of 60 tokens is still running when roles are changed.
const SETTINGS: &str = r#"
cluster = "roles"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
step_us_base = 8000
prefill_us_per_token = 100
decode_us_per_sequence = 200

[decode]
allow_local = false

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"
"#;

/// Callers at once, each with one request after the other.
const CALLERS: u64 = 12;

/// Answers in turn until told to stop; every one must be right and whole.
async fn call(cluster: &Cluster, caller: u64, (stop, answered): (&AtomicBool, &AtomicU64)) {
    for turn in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let seed = caller * 1000 + turn;
        // No two are alike, so that none is in a cache.
        let head = [seed % 90, seed / 90 % 90];
        let words = head.into_iter().chain((2..90).map(|at| (seed + at * 7) % 90));
        let prompt: Vec<u32> = words.map(|word| 32 + word as u32).collect();
        let tokens = 20 + seed as usize % 60;
        let body = json!({
            "model": "mock", "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": 1.0,
            "stream": true, "ignore_eos": true,
        });
        let answer = complete(&cluster.http, &cluster.url, &body).await;
        assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
        let sampling = Sampling { seed, ..Sampling::default() };
        assert_eq!(answer.texts, mock_expected(&prompt, &sampling, 1, tokens));
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// Changes roles while others call, and looks at every node's pages meanwhile.
struct Change<'a> {
    cluster: &'a Cluster,
    operator: Operator,
    answered: &'a AtomicU64,
}

impl Change<'_> {
    /// The node does the new work, and has none left of the old one.
    async fn to(&self, node: &str, role: &str, epoch: u64) {
        let now = self.operator.does(&["role", node, role]).await.unwrap();
        assert_eq!((&now["roles"], &now["epoch"]), (&json!([role]), &json!(epoch)), "{now}");
        let work = if role == "prefill" {
            "baton_prefill_handoffs_ended_total{"
        } else {
            "baton_decode_attempts_total{"
        };
        let before = self.cluster.count(node, work).await;
        eventually("work of the new role", || async {
            self.look().await;
            (self.cluster.count(node, work).await > before + 2).then_some(())
        })
        .await;
        eventually("the end of the old work", || async {
            let now = self.operator.does(&["node", node]).await.unwrap();
            (now["load"]["left_over"] == 0).then_some(())
        })
        .await;
        // The cluster as a whole goes on.
        let answered = self.answered.load(Ordering::SeqCst);
        eventually("more answers", || async {
            (self.answered.load(Ordering::SeqCst) > answered + CALLERS).then_some(())
        })
        .await;
    }

    async fn look(&self) {
        for node in ["prefill-1", "prefill-2", "decode-1", "decode-2"] {
            let (sum, total) = self.cluster.scrape_pages(node).await;
            assert_eq!(sum, total, "pages of {node}");
        }
    }

    async fn refused(&self, words: &[&str]) -> String {
        self.operator.does(words).await.unwrap_err()
    }
}

/// The coordinator's.
async fn metrics(cluster: &Cluster) -> String {
    cluster.http.get(format!("{}/metrics", cluster.url)).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_change_under_load_and_no_answer_notices() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 }).await;
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let calling = join_all((0..CALLERS).map(|caller| call(&cluster, caller, (&stop, &answered))));
    let changing = async {
        let change = Change { cluster: &cluster, operator: Operator::of(&cluster), answered: &answered };
        let busy = |all: &[Value]| all.iter().filter(|request| request["stage"] == "decode").count() > 4;
        change.operator.sees("answers", busy).await;
        change.to("decode-2", "prefill", 1).await;
        let last = change.refused(&["role", "decode-1", "prefill"]).await;
        assert!(last.contains("decode-1 is the last decode node of mock"), "{last}");
        change.to("prefill-1", "decode", 1).await;
        change.to("decode-2", "decode", 2).await;
        let last = change.refused(&["role", "prefill-2", "decode"]).await;
        assert!(last.contains("prefill-2 is the last prefill node of mock"), "{last}");
        assert!(
            change.refused(&["role", "decode-1", "coordinator"]).await.contains("prefill, decode, or both")
        );
        assert!(change.refused(&["role", "decode-9", "prefill"]).await.contains("no node decode-9"));
        // The balancer advises, and by default does no more.
        let advice = eventually("advice", || async {
            let advice = change.operator.does(&["advice"]).await.unwrap();
            let advice = advice.get(0)?.clone();
            ((&advice["prefill"], &advice["decode"]) == (&json!(1), &json!(3))).then_some(advice)
        });
        let advice = advice.await;
        assert!(advice["wanted_prefill"].as_u64() >= Some(1) && advice["wanted_decode"].as_u64() >= Some(1));
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(calling, changing);
    // Nothing was begun again: what ran on a node went on there.
    let metrics = metrics(&cluster).await;
    assert!(metrics.contains("baton_resumed_requests_total 0"), "{metrics}");
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}

/// Prompts take a prefill node 0.1 s each, which is more than one can do in time.
const BALANCED: &str = r#"
[coordinator]
balancer = "on"
balancing = { interval_ms = 200, looks = 3, cool_down_ms = 2000 }
budgets = { ttft_ms = 300 }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_balancer_gives_prompts_another_node() {
    let settings = SETTINGS.replace("prefill_us_per_token = 100", "prefill_us_per_token = 1000") + BALANCED;
    let cluster = Cluster::start(&Plan { settings, prefill: 1, decode: 3 }).await;
    let operator = Operator::of(&cluster);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let calling = join_all((0..CALLERS).map(|caller| call(&cluster, caller, (&stop, &answered))));
    let watching = async {
        eventually("a second prefill node", || async {
            let nodes = operator.does(&["nodes"]).await.unwrap();
            let moved = nodes.as_array().unwrap().iter().filter(|node| node["epoch"].as_u64() > Some(0));
            let roles: Vec<_> = moved.map(|node| node["roles"].clone()).collect();
            roles.contains(&json!(["prefill"])).then_some(())
        })
        .await;
        let before = answered.load(Ordering::SeqCst);
        eventually("more answers", || async {
            (answered.load(Ordering::SeqCst) > before + CALLERS).then_some(())
        })
        .await;
        // How many changes there were by now is a matter of how fast the machine is.
        let changes = "baton_balancer_changes_total{role=\"prefill\"} ";
        for line in [changes, "baton_wanted_nodes{model=\"mock\",role=\"decode\"} "] {
            eventually(line, || async { metrics(&cluster).await.contains(line).then_some(()) }).await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(calling, watching);
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}
