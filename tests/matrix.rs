//! Every feature of the API on every path of a request: answers of a split cluster are those of a
//! single process, also while a prefill node or a decode node is killed.

mod features;

use std::time::Duration;

use baton_protocol::PageCounts;
use futures::future::join_all;
use serde_json::Value;

use crate::sandbox::{Cluster, Plan, eventually};
use features::{Feature, features};

const SETTINGS: &str = r#"
cluster = "matrix"
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
seed = 7
delay_probability = 1.0
max_delay_ms = 20
"#;

/// The ways of a request. A node is lost while all features are under way.
enum Way {
    Split,
    Losing(&'static str, fn(&PageCounts) -> bool),
}

const WAYS: [(&str, Way); 3] = [
    ("split", Way::Split),
    ("prefill node lost", Way::Losing("prefill-1", |pages| pages.sending > 0)),
    ("decode node lost", Way::Losing("decode-1", |pages| pages.running > 0)),
];

/// What the features answer, in the order of the table.
async fn answers(cluster: &Cluster, features: &[Feature]) -> Vec<Vec<Value>> {
    let (http, url) = (cluster.http.clone(), cluster.url.clone());
    join_all(features.iter().map(|feature| feature.ask(&http, &url))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_answers_alike_on_every_path() {
    let features = features();
    let local = Cluster::start_embedded(SETTINGS).await;
    let expected = answers(&local, &features).await;
    let settings = SETTINGS.to_owned() + SLOW_FRAMES;
    let mut split = Cluster::start(&Plan { settings, prefill: 2, decode: 2 }).await;
    let mut wrong = Vec::new();
    for (name, way) in WAYS {
        let found = match way {
            Way::Split => answers(&split, &features).await,
            Way::Losing(node, is_at_work) => losing(&mut split, &features, node, is_at_work).await,
        };
        for ((feature, found), expected) in features.iter().zip(&found).zip(&expected) {
            if found != expected {
                wrong.push(format!("{} × {name}:\n  {found:?}\nin place of\n  {expected:?}", feature.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Kills `node` once it is at work; it is there again afterwards.
async fn losing(
    split: &mut Cluster,
    features: &[Feature],
    node: &str,
    is_at_work: fn(&PageCounts) -> bool,
) -> Vec<Vec<Value>> {
    let (http, url) = (split.http.clone(), split.url.clone());
    let asking = join_all(features.iter().map(|feature| feature.ask(&http, &url)));
    let lost = async {
        let busy = || async { split.pages(node).await.filter(is_at_work).map(drop) };
        eventually("the node to be at work", busy).await;
        split.kill(node);
    };
    let (found, ()) = tokio::join!(asking, lost);
    split.wait_until_idle(Duration::from_secs(30)).await;
    split.start_node(node);
    split.wait_for_members(4).await;
    found
}
