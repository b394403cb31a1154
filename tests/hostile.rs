//! Calls that mean harm, on a running split cluster: each is refused by the name of what is wrong with it,
//! within a time and a memory that others do not notice, and somebody else's stream goes on meanwhile.

mod calls;
mod edges;
mod heads;

use std::{
    cell::RefCell,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use baton_frontend::NewKey;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use self::{
    calls::{Call, May, calls},
    edges::edges,
    heads::{Head, heads},
};
use crate::sandbox::{Cluster, Outcome, Plan, complete_until};

const SETTINGS: &str = r#"
cluster = "hostile"
model = "mock"

[engine]
backend = "mock"
# So many that nobody has to make room.
pages = 512

[engine.mock]
step_us_base = 2000

[frontend]
listen = "127.0.0.1:0"
max_total_tokens = 2048
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
    match (call.may, status) {
        (May::Both | May::Answer, 200) => return Ok(()),
        (May::Answer, _) => return Err(format!("{status}: {shown}")),
        _ => {}
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

/// Answers that are read alone first.
const ALONE: usize = 20;

/// Answers of somebody else, one after another.
struct Reading {
    answers: usize,
    /// Times between tokens, the shortest first.
    gaps: Vec<Duration>,
}

// === impl Reading ===

impl Reading {
    /// Reads so many, or until `stop`; each has to come to its end.
    async fn of(cluster: &Cluster, answers: usize, stop: &AtomicBool) -> Self {
        let body = json!({
            "model": "mock", "prompt": "hello", "max_tokens": 200, "stream": true, "ignore_eos": true,
        });
        let mut reading = Self { answers: 0, gaps: Vec::new() };
        while reading.answers < answers && !stop.load(Ordering::SeqCst) {
            let times = RefCell::new(Vec::new());
            let noting = |_: &_| {
                times.borrow_mut().push(Instant::now());
                false
            };
            let outcome = complete_until(&cluster.http, &cluster.url, &body, noting).await.outcome;
            assert_eq!(outcome, Outcome::Done);
            reading.answers += 1;
            reading.gaps.extend(times.borrow().windows(2).map(|pair| pair[1] - pair[0]));
        }
        reading.gaps.sort_unstable();
        reading
    }

    fn at(&self, quantile: f64) -> f64 {
        let place = ((self.gaps.len() as f64 * quantile) as usize).min(self.gaps.len() - 1);
        self.gaps[place].as_secs_f64() * 1e3
    }
}

impl std::fmt::Display for Reading {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99, longest) = (self.at(0.5), self.at(0.99), self.at(1.0));
        write!(to, "{p50:.1} ms apart, p99 {p99:.1}, at most {longest:.1} ({} answers)", self.answers)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_mean_harm_harm_nobody() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let before = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    let memory = resident(&cluster);
    let calls = [calls(), edges()].concat();

    // Somebody else reads one answer after another.
    let alone = Reading::of(&cluster, ALONE, &AtomicBool::new(false)).await;
    let stop = AtomicBool::new(false);
    let reading = Reading::of(&cluster, usize::MAX, &stop);
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
    let (beside, wrong) = tokio::join!(reading, harming);
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), calls.len(), wrong.join("\n"));
    println!("{} calls that mean harm; another's tokens alone {alone}, beside them {beside}", calls.len());
    cluster.wait_until_idle(Duration::from_secs(30)).await;
    let after = (cluster.pages("prefill-1").await.unwrap(), cluster.pages("decode-1").await.unwrap());
    assert_eq!((before.0.total, before.1.total), (after.0.total, after.1.total));
    let grown = resident(&cluster).saturating_sub(memory);
    assert!(grown < KEPT_BYTES, "the coordinator grew by {} MiB", grown >> 20);
}

/// Sends it, and reads the status of the first answer; 0: there is none.
async fn status_of(address: &str, head: &Head) -> u16 {
    let mut connection = TcpStream::connect(address).await.unwrap();
    // Whoever refuses early may close while we write.
    let _ = connection.write_all(&head.bytes).await;
    let mut answer = Vec::new();
    let read = timeout(LONGEST, connection.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "{}: the connection stays open", head.what);
    let status = answer.strip_prefix(b"HTTP/1.1 ").or(answer.strip_prefix(b"HTTP/1.0 "));
    status.and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_mean_harm_lead_nowhere() {
    let (one, dir) = (NewKey::make("one", None).unwrap(), tempfile::tempdir().unwrap());
    let file = dir.path().join("keys.toml");
    std::fs::write(&file, &one.entry).unwrap();
    let settings = SETTINGS.replace("\"hostile\"", "\"heads\"") + &format!("keys_file = {file:?}\n");
    let cluster = Cluster::start(&Plan { settings, prefill: 1, decode: 1 }).await;
    let address = cluster.url.strip_prefix("http://").unwrap();
    let (heads, mut wrong) = (heads(&one.key), Vec::new());
    for head in &heads {
        let status = status_of(address, head).await;
        if !head.statuses.contains(&status) {
            wrong.push(format!("{}: {status}, not {:?}", head.what, head.statuses));
        }
    }
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), heads.len(), wrong.join("\n"));

    // Very many at once on one connection are answered one after another.
    let call = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n", one.key);
    let all = format!("{call}\r\n").repeat(999) + &call + "connection: close\r\n\r\n";
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let mut answers = Vec::new();
    let (sent, received) =
        tokio::join!(write.write_all(all.as_bytes()), timeout(LONGEST, read.read_to_end(&mut answers)));
    sent.unwrap();
    received.unwrap().unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1000);
    println!("{} heads that mean harm, and a thousand calls at once", heads.len());
}
