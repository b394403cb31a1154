//! What the way from the engine to the client costs: our server over HTTP
//! beside its engine's steps alone, for the same work, taking turns.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, ensure};
use baton_engine::backend::Backend;
use baton_lab::measure::{Endpoint, Summary};

use super::{
    engine::Load,
    load, median,
    process::{ServerProcess, cpu_seconds},
    shown,
};
use crate::{args, compute::Compute, config::ClusterConfig, terminal::say};

/// Tokens of each prompt and of each answer.
const PROMPT: usize = 128;
const OUTPUT: usize = 64;
/// Batches of a run.
const BATCHES: usize = 2;

/// What came out.
pub struct Measured {
    /// Rate over HTTP over that of the engine: the median of pairs, for each number of clients.
    pub over_engine: Vec<f64>,
}

/// What a run came to.
#[derive(Default)]
struct Runs {
    /// Output tokens a second.
    rates: Vec<f64>,
    /// Processor time of an output token, in milliseconds.
    costs: Vec<f64>,
}

/// Prints the table.
///
/// # Errors
/// When the model is not on this machine, the server does not start, or a request fails.
pub fn run(args: &args::BenchServer) -> Result<()> {
    measure(args).map(drop)
}

/// Measures every number of clients in pairs of runs.
///
/// # Errors
/// When the model is not on this machine, the server does not start, or a request fails.
pub fn measure(args: &args::BenchServer) -> Result<Measured> {
    let config = ClusterConfig::load(&args.settings)?;
    config.make_model_available()?;
    let mut backend = Compute::load(&config)?.backend(&config.engine)?;
    let server = ServerProcess::start(&args.settings)?;
    let runtime = load::runtime()?;
    let endpoint = runtime.block_on(load::completions(&server.url(), load::COMMON))?;
    say(
        "| clients | server, tokens/s | engine alone, tokens/s | ratio of pairs | processor ms a token: server | engine |",
    );
    say("|---|---|---|---|---|---|");
    let mut over_engine = Vec::new();
    for &clients in &args.concurrency {
        let (mut served, mut alone) = (Runs::default(), Runs::default());
        runtime.block_on(serve(&endpoint, clients, &server, &mut Runs::default()))?;
        for _ in 0..args.runs.max(1) {
            runtime.block_on(serve(&endpoint, clients, &server, &mut served))?;
            compute(&mut *backend, clients, &mut alone)?;
        }
        let pairs: Vec<f64> = served.rates.iter().zip(&alone.rates).map(|(a, b)| a / b).collect();
        say(format_args!(
            "| {clients} | {} | {} | {:.2} | {:.2} | {:.2} |",
            shown(&served.rates),
            shown(&alone.rates),
            median(&pairs),
            median(&served.costs),
            median(&alone.costs)
        ));
        over_engine.push(median(&pairs));
    }
    Ok(Measured { over_engine })
}

async fn serve(
    endpoint: &Arc<Endpoint>,
    clients: usize,
    server: &ServerProcess,
    runs: &mut Runs,
) -> Result<()> {
    let workload = load::closed(clients, clients * BATCHES, (PROMPT, OUTPUT));
    let before = server.cpu_seconds()?;
    let run = load::run(endpoint, &workload).await?;
    let fault = run.records.iter().find_map(|record| load::fault(record, PROMPT));
    ensure!(fault.is_none(), "a request failed: {}", fault.unwrap_or_default());
    runs.rates.push(Summary::of(&run, &workload.classes).all.output_per_second);
    runs.costs.push((server.cpu_seconds()? - before) * 1e3 / (workload.sessions * OUTPUT) as f64);
    Ok(())
}

/// The same prompts and answers without requests, scheduling, drawing or text.
fn compute(backend: &mut dyn Backend, sequences: usize, runs: &mut Runs) -> Result<()> {
    let (began, before) = (Instant::now(), cpu_seconds("self")?);
    for _ in 0..BATCHES {
        let load = Load::new(backend, sequences, PROMPT + OUTPUT)?;
        load.step(backend, 0, PROMPT)?;
        // The prompt's last row gives the first token.
        for position in PROMPT..PROMPT + OUTPUT - 1 {
            load.step(backend, position, position + 1)?;
        }
    }
    let tokens = (sequences * BATCHES * OUTPUT) as f64;
    runs.rates.push(tokens / began.elapsed().as_secs_f64());
    runs.costs.push((cpu_seconds("self")? - before) * 1e3 / tokens);
    Ok(())
}
