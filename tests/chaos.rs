//! A 2P2D cluster of separate processes over a real etcd, mock backend: nodes
//! are killed and stopped, etcd goes away, clients leave. Every stream is
//! byte-exact or ends in one clear error, and every page comes back.

use std::time::Duration;

use baton_protocol::Sampling;
use serde_json::{Value, json};

use crate::{
    counts::counts,
    sandbox::{Cluster, Outcome, Plan, StreamedAnswer, complete, complete_until, mock_expected},
};

/// Bound of design section 3 for pages of a lost node's requests.
const AFTER_LOSS: Duration = Duration::from_secs(30);

/// A request and what it must answer.
struct Case {
    body: Value,
    expected: Vec<String>,
}

/// Slow enough that faults land in the middle: 200 prompt tokens take about
/// 0.2 s to prefill, 40 tokens about 0.4 s to decode.
const SETTINGS: &str = r#"
cluster = "chaos-test"
model = "mock"

[engine]
backend = "mock"
pages = 512

[engine.mock]
prefill_us_per_token = 1000
decode_us_per_sequence = 1000
step_us_base = 8000

[frontend]
listen = "127.0.0.1:0"

[transfer]
frame_bytes = 4096
"#;

fn plan() -> Plan {
    Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 }
}

fn case(seed: u64, prompt_tokens: usize, max_tokens: usize, choices: u32) -> Case {
    let prompt: Vec<u32> =
        (0..prompt_tokens).map(|i| 32 + ((seed as usize * 31 + i * 7) % 90) as u32).collect();
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": max_tokens, "n": choices, "seed": seed,
        "temperature": 1.0, "stream": true, "ignore_eos": true, "stream_options": {"include_usage": true},
    });
    let sampling = Sampling { seed, ..Sampling::default() };
    Case { body, expected: mock_expected(&prompt, &sampling, choices, max_tokens) }
}

impl Case {
    /// Byte-exact to the end.
    fn assert_whole(&self, answer: &StreamedAnswer) {
        assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
        assert_eq!(answer.texts, self.expected);
        assert!(
            answer.reasons.iter().all(|reason| reason.as_deref() == Some("length")),
            "{:?}",
            answer.reasons
        );
        let tokens = self.body["max_tokens"].as_u64().unwrap() * self.body["n"].as_u64().unwrap();
        assert_eq!(answer.usage["completion_tokens"].as_u64(), Some(tokens), "{}", answer.usage);
    }

    /// What came is a prefix of what is right, choice by choice.
    fn assert_prefix(&self, answer: &StreamedAnswer) {
        for (text, expected) in answer.texts.iter().zip(&self.expected) {
            assert!(expected.starts_with(text.as_str()), "{text:?} is not how {expected:?} begins");
        }
    }
}

/// Starts `cases` and does `fault` once `when` holds for the first of them.
async fn under_fault(
    cluster: &mut Cluster,
    cases: &[Case],
    settle: Duration,
    fault: impl FnOnce(&mut Cluster),
) -> Vec<StreamedAnswer> {
    let (http, url) = (cluster.http.clone(), cluster.url.clone());
    let streams = futures::future::join_all(cases.iter().map(|case| complete(&http, &url, &case.body)));
    let breaking = async {
        tokio::time::sleep(settle).await;
        fault(cluster);
    };
    tokio::join!(streams, breaking).0
}

/// Every answer is whole, every page comes back, and the lost node can join again.
async fn assert_recovered(cluster: &mut Cluster, lost: &str, cases: &[Case], answers: &[StreamedAnswer]) {
    for (case, answer) in cases.iter().zip(answers) {
        case.assert_whole(answer);
    }
    cluster.wait_until_idle(AFTER_LOSS).await;
    cluster.start_node(lost);
    cluster.wait_for_members(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_node_killed_mid_prefill_costs_no_answer() {
    let mut cluster = Cluster::start(&plan()).await;
    for round in 0..counts().chaos_rounds as u64 {
        let cases: Vec<_> = (0..8).map(|i| case(round * 100 + i, 150 + 20 * i as usize, 24, 1)).collect();
        let answers = under_fault(&mut cluster, &cases, Duration::from_millis(150), |cluster| {
            cluster.kill("prefill-1");
        })
        .await;
        assert_recovered(&mut cluster, "prefill-1", &cases, &answers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_node_killed_mid_stream_is_resumed_by_another() {
    let mut cluster = Cluster::start(&plan()).await;
    for round in 0..counts().chaos_rounds as u64 {
        let cases: Vec<_> =
            (0..6).map(|i| case(round * 100 + i, 60, 60, if i % 2 == 0 { 1 } else { 3 })).collect();
        let answers =
            under_fault(&mut cluster, &cases, Duration::from_millis(700), |cluster| cluster.kill("decode-1"))
                .await;
        assert_recovered(&mut cluster, "decode-1", &cases, &answers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_node_killed_between_first_token_and_commit_is_resumed() {
    // Each frame is held back, so that the first token is long out before the KV is in.
    let faults = "\n[transfer.faults]\nseed = 1\ndelay_probability = 1.0\nmax_delay_ms = 60\n";
    let mut cluster =
        Cluster::start(&Plan { settings: SETTINGS.to_owned() + faults, prefill: 2, decode: 2 }).await;
    for round in 0..counts().chaos_rounds as u64 {
        let cases: Vec<_> = (0..4).map(|i| case(round * 100 + i, 120, 30, 3)).collect();
        let (http, url) = (cluster.http.clone(), cluster.url.clone());
        let (seen, mut first) = tokio::sync::mpsc::channel(64);
        let streams = cases.iter().map(|case| {
            let seen = seen.clone();
            complete_until(&http, &url, &case.body, move |answer| {
                if answer.texts.iter().all(|text| !text.is_empty()) {
                    // Full means that it was seen already.
                    let _ = seen.try_send(());
                }
                false
            })
        });
        let answers = futures::future::join_all(streams);
        let breaking = async {
            first.recv().await;
            cluster.kill("decode-1");
        };
        let (answers, ()) = tokio::join!(answers, breaking);
        assert_recovered(&mut cluster, "decode-1", &cases, &answers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_serves_on_while_etcd_is_away() {
    let mut cluster = Cluster::start(&plan()).await;
    cluster.etcd.as_mut().unwrap().kill();
    let away = tokio::time::sleep(Duration::from_secs(counts().etcd_away_seconds));
    for i in 0..counts().requests_without_etcd as u64 {
        let case = case(i, 40, 10, 1);
        case.assert_whole(&complete(&cluster.http, &cluster.url, &case.body).await);
    }
    away.await;
    cluster.etcd.as_mut().unwrap().resume();
    let last = case(999, 40, 10, 2);
    last.assert_whole(&complete(&cluster.http, &cluster.url, &last.body).await);
    cluster.wait_for_members(4).await;
    cluster.wait_until_idle(AFTER_LOSS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_hangs_nobody_and_says_nothing_after_it_wakes() {
    for node in ["decode-1", "prefill-1"] {
        let mut cluster = Cluster::start(&plan()).await;
        let cases: Vec<_> = (0..6).map(|i| case(i, 80, 40, 1)).collect();
        let answers = under_fault(&mut cluster, &cases, Duration::from_millis(400), |cluster| {
            cluster.nodes[node].signal("STOP");
        })
        .await;
        for (case, answer) in cases.iter().zip(&answers) {
            case.assert_whole(answer);
        }
        tokio::time::sleep(Duration::from_secs(counts().stopped_seconds)).await;
        cluster.nodes[node].signal("CONT");
        cluster.wait_for_members(4).await;
        cluster.wait_until_idle(AFTER_LOSS).await;
        let after = case(77, 80, 20, 1);
        after.assert_whole(&complete(&cluster.http, &cluster.url, &after.body).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_leave_nothing_behind() {
    let cluster = Cluster::start(&plan()).await;
    let cases: Vec<_> = (0..counts().disconnects as u64)
        .map(|i| case(i, 20 + (i as usize * 37) % 200, 60, 1 + (i % 3) as u32))
        .collect();
    for wave in cases.chunks(8) {
        let (http, url) = (&cluster.http, &cluster.url);
        let streams = wave.iter().enumerate().map(|(i, case)| async move {
            let leave_after = (i * 13) % 50;
            let answer =
                complete_until(http, url, &case.body, |answer| answer.texts[0].len() > leave_after).await;
            case.assert_prefix(&answer);
        });
        futures::future::join_all(streams).await;
    }
    cluster.wait_until_idle(Duration::from_secs(counts().clean_cancel_seconds)).await;
}
