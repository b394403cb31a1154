//! What whoever restarts processes asks them: `baton probe`.

use std::process::Output;

use crate::{
    certs::baton,
    sandbox::{Cluster, Plan, eventually},
};

const SETTINGS: &str = r#"
cluster = "probes"
model = "mock"

[engine]
backend = "mock"
pages = 64

[frontend]
listen = "127.0.0.1:0"
"#;

async fn probe(url: String) -> Output {
    tokio::task::spawn_blocking(move || baton(&["probe", &url])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_well_say_so_and_others_why_not() {
    let mut cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let node = cluster.nodes["decode-1"].metrics_url().unwrap().replace("/metrics", "/health");
    for url in [node.clone(), format!("{}/health", cluster.url), format!("{}/ready", cluster.url)] {
        assert!(probe(url.clone()).await.status.success(), "{url}");
    }
    cluster.kill("decode-1");
    let gone = probe(node.clone()).await;
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains(&node), "{gone:?}");
    let unready = eventually("an API without decode nodes", async || {
        Some(probe(format!("{}/ready", cluster.url)).await).filter(|said| !said.status.success())
    });
    let unready = String::from_utf8(unready.await.stderr).unwrap();
    assert!(unready.contains("not ready: ["), "{unready}");
    assert!(probe(format!("{}/health", cluster.url)).await.status.success());
}
