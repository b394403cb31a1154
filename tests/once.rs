//! Calls with an `Idempotency-Key` at two coordinators over one etcd, mock backend: each is computed
//! once, whichever of them it comes to, and what is left of that when one of them is killed.

use futures::{StreamExt, future::join_all};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    certs,
    sandbox::{Cluster, Plan, eventually},
};

const SETTINGS: &str = r#"
cluster = "once"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
step_us_base = 3000

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"
"#;

const SECOND: &str = r#"
[[nodes]]
id = "coordinator-2"
roles = ["coordinator"]
"#;

const PAIR: [&str; 2] = ["coordinator", "coordinator-2"];

/// A cluster with two coordinators, of which the second keeps what it knows in a directory.
struct Pair {
    cluster: Cluster,
    dir: TempDir,
}

impl Pair {
    async fn start() -> Self {
        let plan = Plan { settings: SETTINGS.to_owned() + SECOND, prefill: 1, decode: 1 };
        Self::of(Cluster::start(&plan).await).await
    }

    /// With a second coordinator beside the one of `cluster`.
    async fn of(cluster: Cluster) -> Self {
        let mut pair = Self { cluster, dir: TempDir::new().unwrap() };
        pair.start_second();
        eventually("both to share keys", || async { pair.shares().await.then_some(()) }).await;
        pair
    }

    fn start_second(&mut self) {
        let dir = self.dir.path().display();
        self.cluster.start_node_with("coordinator-2", &[&format!("frontend.state_dir={dir}")]);
    }

    /// A call with a key; its answer differs each time that it is computed.
    fn call(&self, at: &str, key: &str, tokens: u32) -> RequestBuilder {
        let body = json!({
            "model": "mock", "prompt": "once", "max_tokens": tokens, "temperature": 1.0, "ignore_eos": true,
            "stream": tokens > 8,
        });
        let url = format!("{}/v1/completions", self.cluster.url_of(at));
        self.cluster.http.post(url).header("idempotency-key", key).json(&body)
    }

    async fn answer(&self, at: &str, key: &str) -> Response {
        self.call(at, key, 4).send().await.unwrap()
    }

    /// The answer's body, if there is one.
    async fn text(&self, at: &str, key: &str) -> Option<String> {
        let response = self.answer(at, key).await;
        if response.status() != 200 { None } else { Some(response.text().await.unwrap()) }
    }

    /// Whether each finds again what the other was asked.
    async fn shares(&self) -> bool {
        let round = fastrand::u64(..);
        let asks = (0..8).map(|i| async move {
            let key = format!("share-{round}-{i}");
            let [first, second] = if i % 2 == 0 { PAIR } else { [PAIR[1], PAIR[0]] };
            let answers = (self.text(first, &key).await, self.text(second, &key).await);
            answers.0.is_some() && answers.0 == answers.1
        });
        join_all(asks).await.into_iter().all(|shared| shared)
    }

    /// Requests that these coordinators have had nodes compute.
    async fn computed(&self, coordinators: &[&str]) -> u64 {
        let count = |at: &str| {
            let url = format!("{}/metrics", self.cluster.url_of(at));
            let http = self.cluster.http.clone();
            async move {
                let text = http.get(url).send().await.unwrap().text().await.unwrap();
                let lines = text.lines().filter(|line| line.starts_with("baton_requests_total{"));
                lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
            }
        };
        join_all(coordinators.iter().map(|at| count(at))).await.into_iter().sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_computed_once_at_whichever_coordinator_it_is_made() {
    let pair = Pair::start().await;
    let before = pair.computed(&PAIR).await;
    for i in 0..8 {
        let key = format!("at-both-{i}");
        let answers = join_all([PAIR[0], PAIR[1], PAIR[0], PAIR[1]].map(|at| pair.text(at, &key))).await;
        assert!(answers[0].is_some() && answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        let again = pair.answer(PAIR[i % 2], &key).await;
        assert_eq!(again.headers()["idempotent-replayed"], "true");
    }
    assert_eq!(pair.computed(&PAIR).await - before, 8);
    // The same key with another body, at the other one.
    assert_eq!(pair.call(PAIR[0], "at-both-0", 5).send().await.unwrap().status(), 422);
    assert_eq!(pair.call(PAIR[1], "at-both-0", 5).send().await.unwrap().status(), 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_with_certificates_know_each_other() {
    let certs = TempDir::new().unwrap();
    certs::init(certs.path());
    let settings = certs::settings(certs.path()) + SECOND;
    let plan = Plan { settings, prefill: 1, decode: 1 };
    let pair = Pair::of(Cluster::start_certified(&plan, certs.path()).await).await;
    let before = pair.computed(&PAIR).await;
    assert!(pair.shares().await);
    assert_eq!(pair.computed(&PAIR).await - before, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_broke_goes_on_at_the_other_coordinator() {
    let pair = Pair::start().await;
    let before = pair.computed(&PAIR).await;
    for i in 0..6 {
        let (key, [first, second]) =
            (format!("stream-{i}"), if i % 2 == 0 { PAIR } else { [PAIR[1], PAIR[0]] });
        let mut parts = pair.call(first, &key, 60).send().await.unwrap().bytes_stream();
        let mut begun = String::new();
        while begun.matches("\n\n").count() < 5 {
            begun += std::str::from_utf8(&parts.next().await.unwrap().unwrap()).unwrap();
        }
        drop(parts);
        let end = begun.rfind("\n\n").unwrap() + 2;
        begun.truncate(end);
        let known = begun.matches("\n\n").count().to_string();
        let rest = pair.call(second, &key, 60).header("last-event-id", known).send().await.unwrap();
        let whole = pair.call(first, &key, 60).send().await.unwrap().text().await.unwrap();
        assert_eq!(begun + &rest.text().await.unwrap(), whole, "nothing twice and nothing missing");
        assert!(whole.ends_with("data: [DONE]\n\n"), "{whole}");
    }
    assert_eq!(pair.computed(&PAIR).await - before, 6);
    pair.cluster.wait_until_idle(std::time::Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_coordinator_kept_is_refused_then_computed_again_and_then_remembered() {
    let mut pair = Pair::start().await;
    let keys: Vec<String> = (0..16).map(|i| format!("kept-{i}")).collect();
    let firsts = join_all(keys.iter().map(|key| pair.text(PAIR[0], key))).await;
    assert!(firsts.iter().all(Option::is_some), "{firsts:?}");
    pair.cluster.kill(PAIR[1]);

    // While the registry still has it, nobody else computes what it may have answered.
    let refused = join_all(keys.iter().map(|key| pair.answer(PAIR[0], key))).await;
    let mut lost = Vec::new();
    for (key, response) in keys.iter().zip(refused) {
        if response.status() != 200 {
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["x-should-retry"], "true");
            assert!(response.headers().contains_key("retry-after"));
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["error"]["code"], "idempotency_keeper_lost");
            lost.push(key.clone());
        }
    }
    assert!(!lost.is_empty() && lost.len() < keys.len(), "{lost:?}");

    // It is back with its disk: every answer is the one that was given.
    pair.start_second();
    let mut agains = Vec::new();
    for key in &keys {
        agains.push(Some(eventually("the keeper", || pair.text(PAIR[0], key)).await));
    }
    assert_eq!(agains, firsts);

    // It goes for good, with calls that nobody has made: the other takes them over.
    pair.cluster.kill(PAIR[1]);
    let before = pair.computed(&PAIR[..1]).await;
    let mut given = Vec::new();
    for i in 0..8 {
        let key = format!("new-{i}");
        given.push(eventually("the other to take over", || pair.text(PAIR[0], &key)).await);
    }
    let taken_over = eventually("the other to take over", || pair.text(PAIR[0], &lost[0])).await;
    let first = firsts[keys.iter().position(|key| *key == lost[0]).unwrap()].clone().unwrap();
    assert_ne!(taken_over, first, "the guarantee ends with the keeper's disk");
    assert_eq!(pair.computed(&PAIR[..1]).await - before, 9);

    // One that comes new to its share asks whether the other has made a call.
    pair.start_second();
    eventually("both to share keys", || async { pair.shares().await.then_some(()) }).await;
    for (i, before) in given.iter().enumerate() {
        assert_eq!(pair.text(PAIR[1], &format!("new-{i}")).await.as_ref(), Some(before));
    }
}
