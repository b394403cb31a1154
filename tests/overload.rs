//! What cannot be answered in time is refused early, and costs others nothing:
//! a prefill and a decode node as processes over a real etcd, mock backend.

use serde_json::json;

use crate::sandbox::{Cluster, Outcome, Plan, complete, eventually};

const SETTINGS: &str = r#"
cluster = "overload"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
prefill_us_per_token = 2000
decode_us_per_sequence = 500

[coordinator]
policy = "predicted"

[frontend]
listen = "127.0.0.1:0"
"#;

/// Seconds of a refusal's `Retry-After`, if the call was refused.
async fn refused(cluster: &Cluster, prompt: &[u32], deadline_ms: &str) -> Option<u64> {
    let body = json!({"model": "mock", "prompt": prompt, "max_tokens": 4, "ignore_eos": true});
    let call = cluster.http.post(format!("{}/v1/completions", cluster.url)).json(&body);
    let answer = call.header("x-baton-deadline-ms", deadline_ms).send().await.unwrap();
    // Before its steps are known a node is believed to be faster, and the time passes.
    assert!([429, 504].contains(&answer.status().as_u16()), "{answer:?}");
    let is_refused = answer.status() == 429;
    let after = answer.headers().get("retry-after").map(|after| after.to_str().unwrap().parse().unwrap());
    is_refused.then(|| after.expect("a refusal says when to come back"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impossible_deadline_is_refused_while_others_go_on() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let prompt = |first: u32| (0..1000).map(|at| 32 + (first + at * 7) % 90).collect::<Vec<u32>>();
    let stream = |first: u32, tokens: u32| {
        let body = json!({
            "model": "mock", "prompt": prompt(first)[..100], "max_tokens": tokens, "stream": true,
            "ignore_eos": true,
        });
        let cluster = &cluster;
        async move { complete(&cluster.http, &cluster.url, &body).await }
    };
    // Both nodes learn how long their steps take.
    for first in 0..6 {
        assert_eq!(stream(first, 20).await.outcome, Outcome::Done);
    }
    let others = futures::future::join_all((10..14).map(|first| stream(first, 200)));
    let long = prompt(50);
    let hurried = eventually("a refusal", || refused(&cluster, &long, "300"));
    let (others, after) = tokio::join!(others, hurried);
    // A prompt of two seconds cannot be there in 0.3.
    assert!((1..=60).contains(&after), "{after} s");
    assert!(others.iter().all(|answer| answer.outcome == Outcome::Done), "{others:?}");
    // With time enough the same prompt is answered.
    let body = json!({"model": "mock", "prompt": long, "max_tokens": 4, "stream": true});
    assert_eq!(complete(&cluster.http, &cluster.url, &body).await.outcome, Outcome::Done);
}
