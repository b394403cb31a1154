//! More calls than the cluster can answer, at random times that do not wait for
//! it: what is answered, what is refused and how fast. Two prefill and two decode
//! nodes in one process, mock backend: steps take their time and no processor.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::{
    measure::{Endpoint, Outcome, Record, Run, Spread},
    traffic::{Arrivals, Workload},
};
use tokio::time::{Instant, interval};

use super::{load, process::ServerProcess};
use crate::{args, terminal::say};

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
const BUDGET_SECONDS: f64 = 1.0;
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Of a call, at least.
const CALL_SECONDS: f64 = 0.05;

/// Prints the table.
///
/// # Errors
/// When the server does not start, or a call breaks off.
pub fn run(args: &args::BenchOverload) -> Result<()> {
    let mut set: Vec<String> = SETTINGS.map(str::to_owned).into();
    set.extend(args.set.iter().cloned());
    let server = ServerProcess::start(&args::Settings { set, ..args::Settings::default() })?;
    load::runtime()?.block_on(measure(args, &server.url()))
}

async fn measure(args: &args::BenchOverload, url: &str) -> Result<()> {
    let endpoint = load::completions(url, load::BYTES).await?;
    let seconds = args.seconds as f64;
    // What a node learns of its steps it learns before.
    load::run(&endpoint, &workload(Arrivals::Closed { clients: CLIENTS }, 3.0)).await?;
    let alone = load::run(&endpoint, &workload(Arrivals::Closed { clients: CLIENTS }, seconds)).await?;
    let capacity = good(&alone) / alone.seconds;
    say(format_args!("{CLIENTS} clients that wait for their answers: {capacity:.1} answers/s\n"));
    say(
        "| load | calls/s | answered in time/s | of capacity | refused/s | failed | TTFT p50/p99 ms | refusal p50/p99 ms | health p99 ms |",
    );
    say("|---|---|---|---|---|---|---|---|---|");
    for (number, &load) in (args.seed..).zip(&args.load) {
        let open =
            Workload { seed: number, ..workload(Arrivals::Poisson { rate: load * capacity }, seconds) };
        let mut health = Vec::new();
        let run = tokio::select! {
            run = load::run(&endpoint, &open) => run?,
            stopped = probe(&endpoint, &mut health) => return stopped,
        };
        report(&run, (load, capacity, seconds), Spread::of(health));
        let broken = run.records.iter().filter(|record| is_broken(record)).count();
        ensure!(broken == 0, "{broken} calls broke off");
    }
    Ok(())
}

fn workload(arrivals: Arrivals, seconds: f64) -> Workload {
    let sessions = match arrivals {
        Arrivals::Poisson { rate } => (2.0 * rate * seconds) as usize + CLIENTS,
        _ => (CLIENTS as f64 * seconds / CALL_SECONDS) as usize,
    };
    Workload {
        arrivals,
        sessions,
        seconds: Some(seconds),
        ..load::closed(CLIENTS, sessions, (PROMPT, OUTPUT))
    }
}

/// Asks how the server is for as long as it is polled; ends when it does not answer.
async fn probe(endpoint: &Endpoint, health: &mut Vec<f64>) -> Result<()> {
    let (mut probes, url) = (interval(PROBE_INTERVAL), format!("{}/health", endpoint.base()));
    loop {
        probes.tick().await;
        let sent = Instant::now();
        endpoint.page(&url).await.context("the server does not say that it is alive")?;
        health.push(sent.elapsed().as_secs_f64());
    }
}

/// Answers that their readers were there for.
fn good(run: &Run) -> f64 {
    let in_time =
        |call: &&Record| call.is_answered() && call.ttft.is_some_and(|first| first <= BUDGET_SECONDS);
    run.records.iter().filter(in_time).count() as f64
}

/// Told that there is no room, and when to come back.
fn is_refused(record: &Record) -> bool {
    matches!(record.outcome, Outcome::Refused { status: 429, says_when: true, .. })
}

/// Neither answered nor refused in words.
fn is_broken(record: &Record) -> bool {
    !record.is_answered() && !record.is_refused()
}

fn report(run: &Run, (load, capacity, seconds): (f64, f64, f64), health: Spread) {
    let first = Spread::of(run.records.iter().filter_map(|record| record.ttft));
    let refused = Spread::of(run.records.iter().filter(|record| is_refused(record)).map(Record::e2e));
    let good = good(run) / seconds;
    let failed = run.records.len() - first.count - refused.count;
    let ms = |seconds: f64| seconds * 1e3;
    say(format_args!(
        "| {load}× | {:.0} | {good:.1} | {:.0} % | {:.0} | {failed} | {:.0} / {:.0} | {:.1} / {:.1} | {:.1} |",
        run.records.len() as f64 / seconds,
        1e2 * good / capacity,
        refused.count as f64 / seconds,
        ms(first.p50),
        ms(first.p99),
        ms(refused.p50),
        ms(refused.p99),
        ms(health.p99),
    ));
}
