//! Crowds: streams by the hundred, connections that come and go, callers who come back when they are told
//! to, caches that are flushed while all ask.

use std::{ops::Range, time::Duration};

use futures::{StreamExt, future::join_all, stream};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    chaos::Case,
    sandbox::{Cluster, Operator, Plan, complete, eventually},
};

const SETTINGS: &str = r#"
cluster = "crowds"
model = "mock"

[engine]
backend = "mock"
pages = 4096
page_tokens = 16

[engine.mock]
prefill_us_per_token = 5
decode_us_per_sequence = 10
step_us_base = 20000

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[coordinator]
"#;

/// Streams at once.
const STREAMS: u64 = 300;
/// What the process that they all go through may take for each; it is about 50 KiB.
const STREAM_BYTES: usize = 96 << 10;
const CONNECTIONS: usize = 2000;
/// Of these, at once.
const AT_ONCE: usize = 100;
/// Until whoever comes back when told is answered.
const MOST_TRIES: u32 = 10;

async fn cluster(limits: &str) -> Cluster {
    Cluster::start(&Plan { settings: format!("{SETTINGS}{limits}\n"), prefill: 1, decode: 2 }).await
}

async fn ask_all(cluster: &Cluster, numbers: Range<u64>) {
    let cases: Vec<_> = numbers.map(|number| Case::new(number, 60, 12, 1)).collect();
    let answers = join_all(cases.iter().map(|case| complete(&cluster.http, &cluster.url, &case.body))).await;
    cases.iter().zip(&answers).for_each(|(case, answer)| case.assert_whole(answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_by_the_hundred_take_little_each() {
    let cluster = cluster("max_running = 1000").await;
    // What is made once is there.
    ask_all(&cluster, 0..8).await;
    let held = || cluster.nodes["coordinator"].held().resident;
    let (before, mut most) = (held(), 0);
    let mut asking = std::pin::pin!(ask_all(&cluster, 100..100 + STREAMS));
    while tokio::time::timeout(Duration::from_millis(50), &mut asking).await.is_err() {
        most = most.max(held());
    }
    let each = most.saturating_sub(before) / STREAMS as usize;
    println!("{} KiB a stream", each >> 10);
    assert!(most > 0 && each <= STREAM_BYTES, "{each} bytes a stream");
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_come_and_go_leave_nothing() {
    let cluster = cluster("").await;
    ask_all(&cluster, 0..2).await;
    let before = cluster.nodes["coordinator"].held();
    let addr = cluster.url.strip_prefix("http://").unwrap();
    let knocks = stream::iter(0..CONNECTIONS).map(|number| async move {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let begun: [&[u8]; 3] =
            [b"", b"POST /v1/comple", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-"];
        // Whoever has a part of a request may be hung up on.
        drop(socket.write_all(begun[number % begun.len()]).await);
    });
    knocks.buffer_unordered(AT_ONCE).collect::<()>().await;
    ask_all(&cluster, 10..14).await;
    eventually("descriptors as before", async || {
        let held = cluster.nodes["coordinator"].held();
        // Connections of the callers above are kept open by them.
        (held.fds <= before.fds + 8 && held.threads <= before.threads + 2).then_some(())
    })
    .await;
}

/// How often somebody asked until the answer came.
async fn tries(cluster: &Cluster, number: u64) -> u32 {
    let case = Case::new(number, 60, 12, 1);
    for tries in 1.. {
        let call = cluster.http.post(format!("{}/v1/completions", cluster.url)).json(&case.body);
        let response = call.send().await.unwrap();
        if response.status().is_success() {
            let text = response.text().await.unwrap();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            return tries;
        }
        assert!([429, 503].contains(&response.status().as_u16()), "{response:?}");
        let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "{after} s");
        tokio::time::sleep(Duration::from_secs(after)).await;
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_when_told_is_answered() {
    let cluster = cluster("max_running = 2\nmax_waiting = 2").await;
    let tries = join_all((0..24).map(|number| tries(&cluster, number))).await;
    println!("{tries:?} tries");
    assert!(tries.iter().any(|tries| *tries > 1), "nobody was refused");
    assert!(tries.iter().all(|tries| *tries <= MOST_TRIES), "{tries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_flushed_under_load_change_no_answer() {
    let cluster = cluster("").await;
    let operator = Operator::of(&cluster);
    let asking = async {
        for _ in 0..4 {
            // The same prompts each time, which are found in the cache or not.
            ask_all(&cluster, 0..16).await;
        }
    };
    let flushing = async {
        for _ in 0..8 {
            operator.does(&["flush"]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(asking, flushing);
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}
