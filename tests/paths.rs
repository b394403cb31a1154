//! How KV travels between nodes, as `/ready` and `baton doctor` tell it.

use std::process::Command;

use serde_json::{Value, json};

use crate::sandbox::{Cluster, Plan, complete, eventually};

/// No two processes can meet in one, so nodes that are told to fall back on something else.
const SETTINGS: &str = r#"
cluster = "paths"
model = "mock"

[engine]
backend = "mock"

[frontend]
listen = "127.0.0.1:0"

[transfer]
transport = "inproc"
fallback = true
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_was_not_asked_for_is_told() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let Cluster { http, url, .. } = &cluster;
    let body = json!({ "model": "mock", "prompt": "x".repeat(2000), "max_tokens": 2, "stream": true });
    complete(http, url, &body).await;
    let told = || async {
        let ready: Value = http.get(format!("{url}/ready")).send().await.ok()?.json().await.ok()?;
        ready["kv_paths"].as_array()?.first().cloned()
    };
    let path = eventually("a path", told).await;
    assert_eq!((&path["from"], &path["to"]), (&json!("prefill-1"), &json!("decode-1")));
    let transport = path["transport"].as_str().unwrap();
    let fallback = path["fallback"].as_str().unwrap();
    assert!(transport != "inproc" && path["bytes_per_second"].as_f64().unwrap() > 0.0, "{path}");
    assert!(fallback.starts_with(&format!("told to use inproc, uses {transport}: ")), "{fallback}");

    let listen = format!("frontend.listen={}", url.trim_start_matches("http://"));
    let args = ["doctor", "--set", "engine.backend=mock", "--set", &listen];
    let said = Command::new(env!("CARGO_BIN_EXE_baton")).args(args).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("2 nodes are ready"), "{said}");
    let line = format!("prefill-1 to decode-1 over {transport}");
    assert!(said.lines().any(|said| said.contains(&line) && said.contains(fallback)), "{said}");
}
