//! 32 concurrent streams on the real model: no error, and page sums hold in every scrape.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    counts::counts,
    sandbox::{Cluster, Outcome, Plan, complete},
};

const SETTINGS: &str = r#"
cluster = "load"
model = "smollm2-135m"

[frontend]
listen = "127.0.0.1:0"

[transfer]
transport = "tcp"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_streams_run_without_an_error() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let until = Instant::now() + Duration::from_secs(counts().load_seconds);
    let streams = futures::future::join_all((0..32).map(|stream| run_stream(&cluster, stream, until)));
    let scrapes = async {
        let mut scrapes = 0;
        while Instant::now() < until {
            for node in ["prefill-1", "decode-1"] {
                let (sum, total) = cluster.scrape_pages(node).await;
                assert_eq!(sum, total, "{node}: pages by state do not sum to the pool");
                scrapes += 1;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scrapes
    };
    let (answered, scrapes) = tokio::join!(streams, scrapes);
    assert!(answered.iter().all(|&count| count > 0), "a stream got no answer: {answered:?}");
    assert!(scrapes > 0);
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}

async fn run_stream(cluster: &Cluster, stream: u64, until: Instant) -> usize {
    let mut answered = 0;
    while answered == 0 || Instant::now() < until {
        let body = json!({
            "model": "smollm2-135m", "prompt": format!("Story {stream}, part {answered}: once upon a time"),
            "max_tokens": 24, "temperature": 0.8, "seed": stream, "stream": true, "ignore_eos": true,
        });
        let answer = complete(&cluster.http, &cluster.url, &body).await;
        assert_eq!(answer.outcome, Outcome::Done, "stream {stream}: {answer:?}");
        answered += 1;
    }
    answered
}
