//! What the way from the engine to the client costs: our server over HTTP
//! beside its engine's steps alone, for the same work, taking turns.

use std::time::Instant;

use anyhow::{Result, ensure};
use baton_engine::backend::Backend;

use super::{
    engine::Load,
    load::{Shape, Tally, Target},
    median,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target = runtime.block_on(Target::new(&format!("http://{}", server.addr())))?;
    say(
        "| clients | server, tokens/s | engine alone, tokens/s | ratio of pairs | processor ms a token: server | engine |",
    );
    say("|---|---|---|---|---|---|");
    let mut over_engine = Vec::new();
    for &clients in &args.concurrency {
        let (mut served, mut alone) = (Runs::default(), Runs::default());
        runtime.block_on(serve(&target, clients, &server, &mut Runs::default()))?;
        for _ in 0..args.runs.max(1) {
            runtime.block_on(serve(&target, clients, &server, &mut served))?;
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

async fn serve(target: &Target, clients: usize, server: &ServerProcess, runs: &mut Runs) -> Result<()> {
    let shape = Shape { clients, requests: clients * BATCHES, prompt_tokens: PROMPT, output_tokens: OUTPUT };
    let (mut tally, before) = (Tally::default(), server.cpu_seconds()?);
    target.run(shape, &mut tally).await;
    ensure!(tally.errors.is_empty(), "a request failed: {}", tally.errors[0]);
    runs.rates.extend(tally.rates);
    runs.costs.push((server.cpu_seconds()? - before) * 1e3 / (shape.requests * OUTPUT) as f64);
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
