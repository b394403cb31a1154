//! A cluster goes over to another build, process by process, under load, and back again. Both coordinators
//! are among them: callers turn to the one that is there, as behind one address. The other build is the one
//! that `BATON_BEFORE` names; without, it is the same one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use baton_protocol::Sampling;
use serde_json::json;
use tokio::task::JoinSet;

use crate::sandbox::{Cluster, Outcome, PATIENCE, Plan, complete, eventually, mock_expected};

const SETTINGS: &str = r#"
cluster = "upgrade"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
prefill_us_per_token = 500
step_us_base = 8000

[frontend]
listen = "127.0.0.1:0"

[[nodes]]
id = "coordinator-2"
roles = ["coordinator"]
"#;

const CALLERS: u64 = 6;
const COORDINATORS: [&str; 2] = ["coordinator", "coordinator-2"];

/// Where callers may turn to.
type Doors = Mutex<BTreeMap<&'static str, String>>;

/// An answer must be whole and right.
async fn ask(http: &reqwest::Client, url: &str, seed: u64) {
    let prompt: Vec<u32> = (0..40 + seed % 100).map(|at| 32 + ((seed * 31 + at * 7) % 90) as u32).collect();
    let tokens = 20 + (seed % 60) as usize;
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": 1.0,
        "stream": true, "ignore_eos": true,
    });
    let answer = complete(http, url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "request {seed}: {answer:?}");
    assert_eq!(answer.texts, mock_expected(&prompt, &Sampling { seed, ..Sampling::default() }, 1, tokens));
}

/// Every process in turn ends and is there again as `program`.
async fn go_over(cluster: &mut Cluster, program: &str, doors: &Doors, answered: &AtomicU64) {
    cluster.program = program.to_owned();
    let order = ["prefill-1", "prefill-2", "decode-1", "decode-2", "coordinator", "coordinator-2"];
    for node in order {
        let routes = COORDINATORS.into_iter().find(|coordinator| *coordinator == node);
        if let Some(node) = routes {
            doors.lock().unwrap().remove(node);
            // Who chose it has called it by now.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut process = cluster.nodes.remove(node).unwrap();
        process.signal("TERM");
        tokio::task::block_in_place(|| process.wait_for_exit(PATIENCE));
        cluster.start_node(node);
        for node in COORDINATORS {
            cluster.url = cluster.url_of(node);
            cluster.wait_for_members(4).await;
        }
        if let Some(node) = routes {
            doors.lock().unwrap().insert(node, cluster.url_of(node));
        }
        // Everybody has spoken with whoever is new.
        let before = answered.load(Ordering::SeqCst);
        eventually("answers", || async {
            (answered.load(Ordering::SeqCst) >= before + 3 * CALLERS).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_over_to_another_build_and_back_and_no_request_fails() {
    let now = env!("CARGO_BIN_EXE_baton");
    let before = std::env::var("BATON_BEFORE").unwrap_or_else(|_| now.to_owned());
    let plan = Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 };
    let mut cluster = Cluster::start_as(&plan, &before).await;
    cluster.start_node("coordinator-2");
    let doors: Doors = Mutex::new(COORDINATORS.map(|node| (node, cluster.url_of(node))).into());
    for node in COORDINATORS {
        cluster.url = cluster.url_of(node);
        cluster.wait_for_members(4).await;
    }
    let (doors, stop) = (Arc::new(doors), Arc::new(AtomicBool::new(false)));
    let (answered, mut callers) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    for caller in 0..CALLERS {
        let (doors, stop, answered) = (Arc::clone(&doors), Arc::clone(&stop), Arc::clone(&answered));
        let http = cluster.http.clone();
        callers.spawn(async move {
            for turn in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let seed = caller + turn * CALLERS;
                let url = doors.lock().unwrap().values().nth(seed as usize % 2).cloned();
                let url = url.unwrap_or_else(|| doors.lock().unwrap().values().next().unwrap().clone());
                ask(&http, &url, seed).await;
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for program in [now, before.as_str()] {
        go_over(&mut cluster, program, &doors, &answered).await;
        println!("{program}: {} requests answered", answered.load(Ordering::SeqCst));
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    cluster.wait_until_idle(PATIENCE).await;
}
