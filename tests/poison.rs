//! A prompt that nodes die of, as processes: two do, no third is tried, and
//! whoever else is served does not notice. Where others were on both, it takes a
//! third to tell which it is.

use futures::future::join_all;
use serde_json::json;

use crate::{
    chaos::Case,
    sandbox::{Cluster, Outcome, PATIENCE, Plan, complete},
};

const SETTINGS: &str = r#"
cluster = "poison"
model = "mock"

[engine]
backend = "mock"
pages = 512

[engine.mock]
prefill_us_per_token = 1000
step_us_base = 2000
dies_of = 7

[frontend]
listen = "127.0.0.1:0"

[transfer]
transport = "tcp"
"#;

async fn ends_nodes(settings: &str, beside: u64) {
    let settings = format!("{SETTINGS}{settings}");
    let mut cluster = Cluster::start(&Plan { settings, prefill: 3, decode: 3 }).await;
    let poison = json!({ "model": "mock", "prompt": vec![7; 60], "max_tokens": 5, "stream": true });
    let others: Vec<_> = (0..beside).map(|number| Case::new(number, 60, 60, 1)).collect();
    let (refused, answers) = tokio::join!(
        complete(&cluster.http, &cluster.url, &poison),
        join_all(others.iter().map(|other| complete(&cluster.http, &cluster.url, &other.body))),
    );
    others.iter().zip(&answers).for_each(|(other, answer)| other.assert_whole(answer));
    assert!(matches!(refused.outcome, Outcome::Error(500, _)), "{:?}", refused.outcome);
    let ended = cluster.nodes.iter_mut().filter_map(|(name, node)| node.has_ended().then_some(name.clone()));
    let ended: Vec<_> = ended.collect();
    assert!(ended.len() == 2 || beside > 0 && ended.len() == 3, "{ended:?} ended");
    cluster.wait_for_members(6 - ended.len()).await;
    let again = complete(&cluster.http, &cluster.url, &poison).await;
    assert_eq!(again.outcome, refused.outcome);
    // It is the prompt that is refused, not the service.
    let last = Case::new(99, 60, 10, 2);
    last.assert_whole(&complete(&cluster.http, &cluster.url, &last.body).await);
    for (name, node) in &mut cluster.nodes {
        assert_eq!(node.has_ended(), ended.contains(name), "{name}");
    }
    for name in ended {
        cluster.kill(&name);
    }
    cluster.wait_until_idle(PATIENCE).await;
}

/// Short prompts are computed where they are decoded.
const LOCAL: &str = "[coordinator]\nlocal_prefill_below_tokens = 1000\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_ends_two_nodes_and_no_third() {
    for settings in ["", LOCAL] {
        ends_nodes(settings, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_beside_a_prompt_that_ends_nodes_is_answered() {
    for settings in ["", LOCAL] {
        ends_nodes(settings, 6).await;
    }
}
