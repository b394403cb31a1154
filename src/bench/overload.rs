//! More calls than the cluster can answer, at random times that do not wait for
//! it: what is answered, what is refused and how fast. Two prefill and two decode
//! nodes in one process, mock backend: steps take their time and no processor.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use super::{
    call::{Called, Caller},
    process::ServerProcess,
};
use crate::{args, client::quantile, terminal::say};

/// A prompt takes 50 ms of a prefill node, and an answer some 100 ms of a decode node's steps.
const SETTINGS: [&str; 10] = [
    "cluster=overload",
    "model=mock",
    "nodes=[{id='p1',roles=['prefill']},{id='p2',roles=['prefill']},{id='d1',roles=['decode']},\
     {id='d2',roles=['decode']},{id='c',roles=['coordinator']}]",
    "engine.backend=mock",
    "engine.pages=4096",
    "engine.mock={prefill_us_per_token=200,step_us_base=4000,decode_us_per_sequence=200}",
    "coordinator.policy=predicted",
    "coordinator.max_running=16",
    "coordinator.max_wait_ms=250",
    "frontend.max_connections=4096",
];
const PROMPT: usize = 250;
const OUTPUT: usize = 16;
/// As many as the cluster runs at once.
const CLIENTS: usize = 16;
/// Readers who wait longer for a first token have gone.
const BUDGET: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// What came of a run.
struct Run {
    calls: Vec<Called>,
    health: Vec<Duration>,
    seconds: f64,
}

/// Prints the table.
///
/// # Errors
/// When the server does not start, or a call breaks off.
pub fn run(args: &args::BenchOverload) -> Result<()> {
    let mut set: Vec<String> = SETTINGS.map(str::to_owned).into();
    set.extend(args.set.iter().cloned());
    let server = ServerProcess::start(&args::Settings { set, ..args::Settings::default() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args, Arc::new(Caller::new(server.addr())?)))
}

async fn measure(args: &args::BenchOverload, caller: Arc<Caller>) -> Result<()> {
    let seconds = Duration::from_secs(args.seconds);
    // What a node learns of its steps it learns before.
    closed(&caller, Duration::from_secs(3)).await;
    let alone = closed(&caller, seconds).await;
    let capacity = alone.good() / alone.seconds;
    say(format_args!("{CLIENTS} clients that wait for their answers: {capacity:.1} answers/s\n"));
    say(
        "| load | calls/s | answered in time/s | of capacity | refused/s | failed | TTFT p50/p99 ms | refusal p50/p99 ms | health p99 ms |",
    );
    say("|---|---|---|---|---|---|---|---|---|");
    let mut random = fastrand::Rng::with_seed(args.seed);
    for &load in &args.load {
        let run = open(&caller, load * capacity, seconds, &mut random).await?;
        run.report(load, capacity);
        let broken = run.calls.iter().filter(|call| call.is_broken()).count();
        ensure!(broken == 0, "{broken} calls broke off");
    }
    Ok(())
}

fn prompt(random: &mut fastrand::Rng) -> Vec<u32> {
    (0..PROMPT).map(|_| random.u32(32..127)).collect()
}

/// Clients who ask again when they have their answers.
async fn closed(caller: &Arc<Caller>, time: Duration) -> Run {
    let began = Instant::now();
    let client = async || {
        let (mut random, mut calls) = (fastrand::Rng::new(), Vec::new());
        while began.elapsed() < time {
            calls.push(caller.complete(&prompt(&mut random), OUTPUT).await);
        }
        calls
    };
    let calls = futures::future::join_all((0..CLIENTS).map(|_| client())).await;
    Run { calls: calls.concat(), health: Vec::new(), seconds: began.elapsed().as_secs_f64() }
}

/// So many calls a second, each at a random time of its own.
async fn open(caller: &Arc<Caller>, rate: f64, time: Duration, random: &mut fastrand::Rng) -> Result<Run> {
    let (began, mut at, mut calls) = (Instant::now(), 0.0, JoinSet::new());
    let mut probes = interval(PROBE_INTERVAL);
    let mut health = Vec::new();
    while at < time.as_secs_f64() {
        tokio::select! {
            () = sleep_until(began + Duration::from_secs_f64(at)) => {
                let (caller, prompt) = (Arc::clone(caller), prompt(random));
                calls.spawn(async move { caller.complete(&prompt, OUTPUT).await });
                at -= (1.0 - random.f64()).ln() / rate;
            }
            _ = probes.tick() => health.push(caller.health().await?),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Run { calls: calls.join_all().await, health, seconds })
}

// === impl Run ===

impl Run {
    /// Answers that their readers were there for.
    fn good(&self) -> f64 {
        let in_time = |call: &&Called| call.is_whole && call.first.is_some_and(|first| first <= BUDGET);
        self.calls.iter().filter(in_time).count() as f64
    }

    fn report(&self, load: f64, capacity: f64) {
        let ms = |times: &[Duration], share| quantile(times, share).as_secs_f64() * 1e3;
        let first: Vec<_> = self.calls.iter().filter_map(|call| call.first).collect();
        let refused: Vec<_> =
            self.calls.iter().filter(|call| call.is_refused()).map(|call| call.total).collect();
        let good = self.good() / self.seconds;
        let failed = self.calls.len() - first.len() - refused.len();
        say(format_args!(
            "| {load}× | {:.0} | {good:.1} | {:.0} % | {:.0} | {failed} | {:.0} / {:.0} | {:.1} / {:.1} | {:.1} |",
            self.calls.len() as f64 / self.seconds,
            1e2 * good / capacity,
            refused.len() as f64 / self.seconds,
            ms(&first, 0.5),
            ms(&first, 0.99),
            ms(&refused, 0.5),
            ms(&refused, 0.99),
            ms(&self.health, 0.99),
        ));
    }
}

// === impl Called ===

impl Called {
    fn is_refused(&self) -> bool {
        self.status == 429 && self.says_when
    }

    /// Neither answered nor refused in words.
    fn is_broken(&self) -> bool {
        self.status == 0 || (self.status == 200 && !self.is_whole)
    }
}
