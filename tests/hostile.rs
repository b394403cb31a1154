//! Calls that mean harm, on a running split cluster: each is refused by the name of what is wrong with it,
//! within a time and a memory that others do not notice, and somebody else's stream goes on meanwhile.

mod calls;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::calls::{Call, calls};
use crate::sandbox::{Cluster, Outcome, Plan, complete};

const SETTINGS: &str = r#"
cluster = "hostile"
model = "mock"

[engine]
backend = "mock"
pages = 128

[engine.mock]
step_us_base = 2000

[frontend]
listen = "127.0.0.1:0"
"#;

/// No call may take longer, on however busy a machine: what is not bounded takes minutes.
const LONGEST: Duration = Duration::from_secs(20);
/// What the coordinator may keep of all of them together: compiled grammars, mostly.
const KEPT_BYTES: u64 = 512 << 20;

/// What a call came to.
async fn refused(cluster: &Cluster, call: &Call) -> Result<(), String> {
    let url = format!("{}{}", cluster.url, call.path);
    let request = cluster.http.post(url).header("content-type", "application/json").body(call.body.clone());
    let began = Instant::now();
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    let shown: String = text.chars().take(300).collect();
    if began.elapsed() > LONGEST {
        return Err(format!("took {:?}", began.elapsed()));
    }
    if call.may_pass && status == 200 {
        return Ok(());
    }
    let error: Value = serde_json::from_str(&text).map_err(|_| format!("{status}, not JSON: {shown}"))?;
    let names = |error: &Value| {
        let param = error["error"]["param"].as_str().unwrap_or_default();
        param.starts_with(call.names)
            || error["error"]["message"].as_str().unwrap_or_default().contains(call.names)
    };
    if (400..500).contains(&status) && names(&error) { Ok(()) } else { Err(format!("{status}: {shown}")) }
}

/// Memory of the coordinator, as the system counts it.
fn resident(cluster: &Cluster) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", cluster.nodes["coordinator"].id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_mean_harm_harm_nobody() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let before = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    let memory = resident(&cluster);
    let calls = calls();

    // Somebody else reads one answer after another.
    let stop = AtomicBool::new(false);
    let body = json!({
        "model": "mock", "prompt": "hello", "max_tokens": 200, "stream": true, "ignore_eos": true,
    });
    let reading = async {
        let mut outcomes = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            outcomes.push(complete(&cluster.http, &cluster.url, &body).await.outcome);
        }
        outcomes
    };
    let harming = async {
        let mut wrong = Vec::new();
        for call in &calls {
            if let Err(why) = refused(&cluster, call).await {
                wrong.push(format!("{}: {why}", call.what));
            }
        }
        stop.store(true, Ordering::SeqCst);
        wrong
    };
    let (outcomes, wrong) = tokio::join!(reading, harming);
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), calls.len(), wrong.join("\n"));
    println!("{} calls that mean harm, beside {} answers", calls.len(), outcomes.len());
    assert!(!outcomes.is_empty() && outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{outcomes:?}");
    cluster.wait_until_idle(Duration::from_secs(30)).await;
    let after = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    assert_eq!((before.0.total, before.1.total), (after.0.total, after.1.total));
    let grown = resident(&cluster).saturating_sub(memory);
    assert!(grown < KEPT_BYTES, "the coordinator grew by {} MiB", grown >> 20);
}
