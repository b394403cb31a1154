//! A soak: a cluster under a little of everything for a long time, in which no process ends, so that whatever
//! they keep too long shows: callers who listen, leave and hurry, frames that are lost and damaged, nodes and
//! an etcd that stand still now and then. Of each process, memory, descriptors, threads, tasks and pages are
//! read all the time; after the first quarter, a line through each must be level but for what is allowed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::task::JoinSet;

use super::{
    callers::{Cuts, Sky, Strike, Tally},
    cell::bring_back,
    faults::{Does, Fault, Who},
    rows::FAULTS,
    storm::{overhear, someone},
};
use crate::{
    counts::{counts, env_number},
    sandbox::{Cluster, Plan},
};

/// How much more of something a process may have after an hour.
struct Tolerance {
    what: &'static str,
    unit: f64,
    per_hour: f64,
}

/// What a process had, by the time since the beginning, in seconds.
type Samples = Vec<(f64, [f64; TOLERANCES.len()])>;

const TOLERANCES: [Tolerance; 5] = [
    Tolerance { what: "MiB of memory", unit: (1 << 20) as f64, per_hour: 16.0 },
    Tolerance { what: "descriptors", unit: 1.0, per_hour: 8.0 },
    Tolerance { what: "threads", unit: 1.0, per_hour: 4.0 },
    Tolerance { what: "tasks", unit: 1.0, per_hour: 16.0 },
    Tolerance { what: "pages in use", unit: 1.0, per_hour: 16.0 },
];

const CALLERS: u64 = 3;
/// Between two faults.
const QUIET: Duration = Duration::from_secs(10);
/// Samples in all.
const SAMPLES: u32 = 400;
/// In less time, what comes and goes with requests is more than what grows: then nothing but the end is judged.
const JUDGED_FROM: Duration = Duration::from_secs(600);
/// Until all pages are free at the end.
const FREE_WITHIN: Duration = Duration::from_secs(120);

const SETTINGS: &str = r#"
cluster = "soak"
model = "mock"

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[coordinator]
max_running = 6
max_wait_ms = 60000
local_prefill_below_tokens = 100

[transfer]
transport = "tcp"
frame_bytes = 1024

[transfer.faults]
seed = 1
delay_probability = 0.3
max_delay_ms = 20
drop_probability = 0.002
corrupt_probability = 0.002
reorder_probability = 0.01

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
prefill_us_per_token = 1000
step_us_base = 10000
"#;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_under_load_aborts_and_faults() {
    let length = Duration::from_secs(env_number("BATON_SOAK_SECONDS").unwrap_or(counts().soak_seconds));
    let (begun, mut random) = (Instant::now(), Rng::with_seed(1));
    let mut cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 }).await;
    let (sky, tally) = (Arc::new(Sky::over(&cluster)), Arc::new(Mutex::new(Tally::default())));
    let (stop, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for caller in 0..CALLERS {
        let (sky, stop, tally) = (Arc::clone(&sky), Arc::clone(&stop), Arc::clone(&tally));
        let mut random = random.fork();
        callers.spawn(async move {
            for turn in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                sky.call(caller + turn * CALLERS, &mut random, &tally).await;
            }
        });
    }
    let (mut samples, mut faults): (BTreeMap<String, Samples>, _) = (BTreeMap::new(), BTreeMap::new());
    let mut next = Instant::now() + QUIET;
    while begun.elapsed() < length {
        take(&cluster, begun.elapsed(), &mut samples).await;
        if Instant::now() >= next {
            let fault = strike(&mut cluster, &sky, &mut random).await;
            *faults.entry(fault).or_insert(0) += 1;
            next = Instant::now() + QUIET;
        }
        tokio::time::sleep(length / SAMPLES).await;
    }
    stop.store(true, Ordering::SeqCst);
    while callers.join_next().await.is_some() {}
    cluster.wait_until_idle(FREE_WITHIN).await;
    overhear(&cluster, &tally);

    let counted = calls(&cluster).await;
    let mut tally = tally.lock().unwrap();
    let requests = tally.requests.values().sum::<u64>() + tally.wrong.len() as u64;
    println!("{:.0?}: {requests} requests ({:?}), {} tokens", begun.elapsed(), tally.requests, tally.tokens);
    println!("faults: {faults:?}");
    if counted != requests {
        tally.add(format!("{requests} requests, and {counted} by the metrics"));
    }
    for (name, samples) in &samples {
        let grown = report(name, samples, length);
        grown.into_iter().filter(|_| length >= JUDGED_FROM).for_each(|wrong| tally.add(wrong));
    }
    assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n"));
    assert!(tally.requests.get("whole").is_some_and(|count| *count > 0));
}

/// Something that ends no process.
async fn strike(cluster: &mut Cluster, sky: &Sky, random: &mut Rng) -> &'static str {
    let possible: Vec<_> = FAULTS.iter().filter(|fault| fault.ends_nobody()).collect();
    let fault = possible[random.usize(..possible.len())];
    let (_, request) = someone(sky, 'S', random).await;
    let begun = Instant::now();
    sky.begin(Strike { name: fault.name, begun, over: None, hurts: fault.hurts(), cuts: Cuts::None });
    if matches!(fault.does, Does::Cancel) {
        // It may have ended.
        drop(sky.operator().does(&["cancel", request["id"].as_str().unwrap()]).await);
    } else {
        fault.strike(cluster, &request).await;
    }
    let workers = cluster.nodes.len() - 1;
    bring_back(cluster, &[], workers).await;
    sky.end(cluster);
    fault.name
}

impl Fault {
    fn ends_nobody(&self) -> bool {
        match self.does {
            Does::Stop(Who::Coordinator, seconds) => seconds < 10,
            Does::Cancel | Does::Stop(..) | Does::EtcdKilled(_) | Does::EtcdStopped(_) => true,
            Does::EtcdEmptied => true,
            _ => false,
        }
    }
}

/// What every process has now.
async fn take(cluster: &Cluster, at: Duration, samples: &mut BTreeMap<String, Samples>) {
    for (name, process) in &cluster.nodes {
        let Ok(answer) = cluster.http.get(metrics_of(cluster, name)).send().await else { continue };
        let Ok(text) = answer.text().await else { continue };
        let sum = |name: &str, is_meant: &dyn Fn(&str) -> bool| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name) && is_meant(line));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let is_free =
            |line: &str| ["free", "cached"].iter().any(|state| line.contains(&format!("state=\"{state}\"")));
        let pages = sum("baton_kv_pages{", &|line| !is_free(line));
        let held = process.held();
        let values = [
            held.resident as f64,
            held.fds as f64,
            held.threads as f64,
            sum("baton_runtime_tasks ", &|_| true),
            pages,
        ];
        samples.entry(name.clone()).or_default().push((at.as_secs_f64(), values));
    }
}

/// Calls for answers that the coordinator has counted.
async fn calls(cluster: &Cluster) -> u64 {
    let text =
        cluster.http.get(metrics_of(cluster, "coordinator")).send().await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with("baton_http_requests_total{"));
    let lines = lines.filter(|line| line.contains("route=\"completions\""));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn metrics_of(cluster: &Cluster, node: &str) -> String {
    cluster.nodes[node].metrics_url().unwrap_or_else(|| format!("{}/metrics", cluster.url))
}

/// Prints what a process had, and says what has grown beyond what is allowed.
fn report(name: &str, samples: &Samples, length: Duration) -> Vec<String> {
    let later: Vec<_> = samples.iter().filter(|(at, _)| *at > length.as_secs_f64() / 4.0).collect();
    let hours = length.as_secs_f64() * 0.75 / 3600.0;
    let rows = TOLERANCES.iter().enumerate().map(|(index, tolerance)| {
        let points: Vec<_> =
            later.iter().map(|(at, all)| (at / 3600.0, all[index] / tolerance.unit)).collect();
        let (Tolerance { what, per_hour, .. }, slope) = (tolerance, slope(&points));
        let mean = points.iter().map(|(_, value)| value).sum::<f64>() / points.len() as f64;
        println!("{name}: {mean:.1} {what}, {slope:+.2} an hour, {per_hour} allowed");
        // What is allowed in an hour may come in less.
        let grown = slope * hours;
        (grown > per_hour * hours.max(1.0)).then(|| format!("{name}: {grown:+.1} {what} in {hours:.2} hours"))
    });
    rows.flatten().collect()
}

/// Of the line that fits best, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let along: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    along / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>().max(f64::MIN_POSITIVE)
}

#[test]
fn a_line_is_found_among_points() {
    let points: Vec<_> = (0..100).map(|x| (f64::from(x), 3.0 * f64::from(x) + f64::from(x % 2))).collect();
    assert!((slope(&points) - 3.0).abs() < 0.01);
    let grown: Samples =
        (0..400).map(|x| (f64::from(x) * 9.0, [f64::from(x) * 1e6, 0.0, 0.0, 0.0, 0.0])).collect();
    assert_eq!(report("it", &grown, Duration::from_secs(3600)).len(), 1);
}
