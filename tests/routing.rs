//! Requests go where their prompts are cached: prefill nodes and two decode
//! nodes as processes over a real etcd, mock backend.

use baton_protocol::{Sampling, chain, wire};
use serde_json::json;

use crate::sandbox::{Cluster, Outcome, Plan, complete, eventually, mock_expected};

const SETTINGS: &str = r#"
cluster = "routing"
model = "mock"

[engine]
backend = "mock"
pages = 256
page_tokens = 16

[engine.mock]
prefill_us_per_token = 200

[frontend]
listen = "127.0.0.1:0"
"#;

/// Tokens of a first turn, more than a few answers count for.
const PROMPT: usize = 640;
const ANSWER: usize = 32;

/// Of a prompt's pages, how many a node says that its cache holds.
async fn cached_pages(cluster: &Cluster, node: &str, prompt: &[u32]) -> usize {
    let addr = cluster.nodes[node].control_addr().unwrap();
    let mut client = wire::node_client::NodeClient::connect(format!("http://{addr}")).await.unwrap();
    let description = client.describe(wire::DescribeRequest {}).await.unwrap().into_inner();
    let info: baton_protocol::NodeInfo = serde_json::from_str(&description.info_json).unwrap();
    let ask = wire::PrefixesRequest { incarnation: info.incarnation.0, after: 0, interval_ms: 1000 };
    let mut parts = client.prefixes(ask).await.unwrap().into_inner();
    let part = parts.message().await.unwrap().unwrap();
    let held = baton_protocol::PrefixChanges::try_from(&part).unwrap().added;
    chain("default", 16, prompt).iter().take_while(|block| held.contains(block)).count()
}

/// Pages that the coordinator knows of.
async fn indexed(cluster: &Cluster) -> Option<u64> {
    let text = cluster.http.get(format!("{}/metrics", cluster.url)).send().await.ok()?.text().await.ok()?;
    let line = text.lines().find(|line| line.starts_with("baton_prefix_index_pages "))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Sends a prompt, checks the answer, and waits until the coordinator knows who holds what.
async fn turn(cluster: &Cluster, prompt: &[u32]) -> Vec<u32> {
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": ANSWER, "seed": 3, "temperature": 1.0,
        "stream": true, "ignore_eos": true,
    });
    let answer = complete(&cluster.http, &cluster.url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    let sampling = Sampling { seed: 3, ..Sampling::default() };
    assert_eq!(answer.texts, mock_expected(prompt, &sampling, 1, ANSWER));
    cluster.wait_until_idle(std::time::Duration::from_secs(30)).await;
    eventually("the coordinator to know every page", || async {
        let mut pages = 0;
        for node in cluster.nodes.keys().filter(|node| *node != "coordinator") {
            pages += cluster.pages(node).await?.cached;
        }
        (indexed(cluster).await? == pages).then_some(())
    })
    .await;
    // A next turn: the prompt, what was answered, and a question more.
    let answered = answer.texts[0].bytes().map(u32::from);
    prompt.iter().copied().chain(answered).chain(33..65).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_turn_lands_on_the_node_that_has_its_prefix() {
    follow("prefix_aware", 1).await;
}

/// Without prefill nodes all that differs between the two decode nodes is what they hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_turn_is_foretold_to_be_fastest_where_its_prefix_is() {
    let cluster = follow("predicted", 0).await;
    let text = cluster.http.get(format!("{}/metrics", cluster.url)).send().await.unwrap();
    let text = text.text().await.unwrap();
    for name in ["baton_prediction_ttft_ratio_count", "baton_prediction_itl_ratio_count"] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
        assert!(!line.ends_with(" 0"), "{line}");
    }
}

/// Conversations of several turns, each of which stays where it began.
async fn follow(policy: &str, prefill: usize) -> Cluster {
    let settings = format!("{SETTINGS}\n[coordinator]\npolicy = \"{policy}\"\n");
    let mut cluster = Cluster::start(&Plan { settings, prefill, decode: 2 }).await;
    // Each conversation comes back to where it was, wherever that is.
    for conversation in 0..6u32 {
        let first: Vec<u32> = (0..PROMPT as u32).map(|i| 32 + (i * 7 + conversation * 31) % 90).collect();
        let second = turn(&cluster, &first).await;
        let (one, two) = (
            cached_pages(&cluster, "decode-1", &second).await,
            cached_pages(&cluster, "decode-2", &second).await,
        );
        assert!(one.min(two) == 0 && one.max(two) >= PROMPT / 16, "one node holds it: {one} and {two} pages");
        let home = if one > 0 { ("decode-1", "decode-2") } else { ("decode-2", "decode-1") };
        turn(&cluster, &second).await;
        assert_eq!(cached_pages(&cluster, home.1, &second).await, 0, "the other node has seen it");
        assert!(cached_pages(&cluster, home.0, &second).await >= second.len() / 16, "its home has all of it");
        if conversation == 3 {
            // A coordinator that was restarted learns everything anew.
            cluster.kill("coordinator");
            cluster.start_node("coordinator");
            let line = cluster.nodes["coordinator"].wait_for("ready at ", crate::sandbox::PATIENCE);
            cluster.url = line.split("ready at ").nth(1).unwrap().trim().to_owned();
            cluster.wait_for_members(prefill + 2).await;
            let third = turn(&cluster, &second).await;
            assert_eq!(
                cached_pages(&cluster, home.1, &third).await,
                0,
                "it went elsewhere after the restart"
            );
        }
    }
    cluster
}
