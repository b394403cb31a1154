//! What a request costs before and behind the engine: a coordinator with its
//! frontend alone on the first core; on the second, nodes whose steps take no
//! time, and the callers. Prompts are words in the tokens of a real model.
//!
//! - `nodes`: first tokens of the nodes themselves
//! - `writes`: what the system takes for a write

mod nodes;
mod writes;

use std::{process::Command, sync::Arc};

use anyhow::{Context, Result, ensure};
use baton_lab::{
    measure::{Api, Endpoint, Manner, Run, Spread},
    traffic::{Arrivals, Workload},
};
use tokio::runtime::Runtime;

use super::{
    cluster::{Cluster, Layout},
    load, median, shown,
};
use crate::{args, config::ClusterConfig, terminal::say};
use nodes::Nodes;

/// Tokens of a prompt.
const PROMPT: usize = 64;
/// Callers at once, who keep their connections.
const CALLERS: usize = 32;
/// Requests a second that come evenly, for times to first token.
const EVEN: f64 = 500.0;
/// Answers at once that come at a pace: a few, so that a processor sleeps between their tokens,
/// and as many as keep it busy.
const STREAMS: [usize; 2] = [32, 256];
/// Tokens of each, and the pace in microseconds.
const STREAMED: usize = 256;
const PACE_US: usize = 20_000;

/// The coordinator's figures in each run.
#[derive(Default)]
struct Figures {
    /// Requests a second while all callers ask.
    rates: Vec<f64>,
    /// Microseconds of its processor for a request.
    request_us: Vec<f64>,
    /// Milliseconds to the first token, of requests that come evenly: the middle one and the
    /// slowest of a hundred.
    first_ms: [Vec<f64>; 2],
    /// Of these, what the same nodes do not take when they are asked themselves.
    added_ms: [Vec<f64>; 2],
    /// Microseconds of its processor for a token, by how many streams there are.
    token_us: [Vec<f64>; STREAMS.len()],
    /// The same for a write to each stream, by a thread that does nothing else.
    write_us: [Vec<f64>; STREAMS.len()],
    /// Memory that it had at last, in MiB.
    mib: f64,
}

/// Prints the table.
///
/// # Errors
/// When the model is not on this machine, a process does not start, or a request fails.
pub fn run(args: &args::BenchFront) -> Result<()> {
    let settings = args::Settings { model: Some(args.model.clone()), ..args::Settings::default() };
    ClusterConfig::load(&settings)?.make_model_available()?;
    stay_on_the_second_core()?;
    let (runtime, mut figures) = (load::runtime()?, Figures::default());
    let server = Server::start(args, 0, &runtime)?;
    server.ask(&runtime, Arrivals::Closed { clients: CALLERS }, (args.requests, 1))?;
    for _ in 0..args.runs.max(1) {
        let (run, cpu) = server.ask(&runtime, Arrivals::Closed { clients: CALLERS }, (args.requests, 1))?;
        figures.rates.push(run.records.len() as f64 / run.seconds);
        figures.request_us.push(cpu * 1e6 / run.records.len() as f64);
        let own = Spread::of(runtime.block_on(server.nodes.first_tokens(args.requests))?);
        let (run, _) = server.ask(&runtime, Arrivals::Constant { rate: EVEN }, (args.requests, 1))?;
        // From when it was sent: the caller's own lateness is nobody's.
        let first = run.records.iter().filter_map(|of| Some(of.ttft? - (of.sent - of.intended)));
        figures.first(&Spread::of(first), &own);
    }
    drop(server);
    let server = Server::start(args, PACE_US, &runtime)?;
    for (at, streams) in STREAMS.into_iter().enumerate() {
        let ask = || server.ask(&runtime, Arrivals::Closed { clients: streams }, (streams.max(64), STREAMED));
        ask()?;
        for _ in 0..args.runs.max(1) {
            let (run, cpu) = ask()?;
            let tokens: usize = run.records.iter().map(|record| record.output_tokens).sum();
            figures.token_us[at].push(cpu * 1e6 / tokens as f64);
            figures.write_us[at].push(writes::write_us(&runtime, streams)?);
        }
    }
    figures.mib = server.cluster.coordinator().resident_bytes()? as f64 / (1 << 20) as f64;
    figures.report();
    Ok(())
}

/// The callers and the nodes leave the first core to the coordinator.
fn stay_on_the_second_core() -> Result<()> {
    let status = Command::new("taskset")
        .args(["--cpu-list", "--pid", "1", &std::process::id().to_string()])
        .stdout(std::process::Stdio::null())
        .status()
        .context("taskset (Debian: util-linux)")?;
    ensure!(status.success(), "this machine has no second core for the callers");
    Ok(())
}

/// A cluster and a way to ask it.
struct Server {
    cluster: Cluster,
    endpoint: Arc<Endpoint>,
    nodes: Nodes,
}

// === impl Server ===

impl Server {
    /// Its steps take so long.
    fn start(args: &args::BenchFront, step_us: usize, runtime: &Runtime) -> Result<Self> {
        let mut set = vec![
            "engine.backend=mock".to_owned(),
            format!("engine.mock={{speaks_model=true,step_us_base={step_us}}}"),
            "engine.pages=8192".to_owned(),
        ];
        set.extend(args.set.iter().cloned());
        let cluster = Cluster::start(Layout::Front, &args.model, &set)?;
        // The likeliest token: drawing from a real model's vocabulary would keep the nodes busy.
        let fields = [("temperature".to_owned(), 0.into())].into_iter().collect();
        let manner = Manner { api: Api::Completions, keeps_connections: true, fields, ..Manner::default() };
        let endpoint = runtime.block_on(Endpoint::connect(&cluster.url(), manner))?;
        let nodes = runtime.block_on(Nodes::connect(cluster.controls()))?;
        Ok(Self { cluster, endpoint: Arc::new(endpoint), nodes })
    }

    /// Asks so many requests for so many tokens each. Returns what came, and seconds of the
    /// coordinator's processor.
    fn ask(
        &self,
        runtime: &Runtime,
        arrivals: Arrivals,
        (requests, tokens): (usize, usize),
    ) -> Result<(Run, f64)> {
        let workload = Workload { arrivals, ..load::closed(CALLERS, requests, (PROMPT, tokens)) };
        let before = self.cluster.coordinator().cpu_seconds()?;
        let run = runtime.block_on(load::run(&self.endpoint, &workload))?;
        let used = self.cluster.coordinator().cpu_seconds()? - before;
        let failed = run.records.iter().find(|record| !record.is_answered());
        if let Some(record) = failed {
            anyhow::bail!("a request was not answered: {:?}", record.outcome);
        }
        Ok((run, used))
    }
}

// === impl Figures ===

impl Figures {
    /// First tokens of a run, and those of the nodes themselves.
    fn first(&mut self, first: &Spread, own: &Spread) {
        let (first, own) = ([first.p50, first.p99], [own.p50, own.p99]);
        for (at, (first, own)) in first.into_iter().zip(own).enumerate() {
            self.first_ms[at].push(first * 1e3);
            self.added_ms[at].push((first - own) * 1e3);
        }
    }

    fn report(&self) {
        let ([p50, p99], [added, most_added]) = (&self.first_ms, &self.added_ms);
        say("| coordinator and frontend on one core | median [all runs] |");
        say("|---|---|");
        for (what, values) in [
            (format!("requests/s, {CALLERS} callers, {PROMPT} tokens in and one out"), &self.rates),
            ("processor µs a request".to_owned(), &self.request_us),
            (format!("first token at {EVEN}/s, p50 ms"), p50),
            ("p99 ms".to_owned(), p99),
            ("more than from the nodes themselves, p50 ms".to_owned(), added),
            ("p99 ms".to_owned(), most_added),
            (paced("a token", STREAMS[0]), &self.token_us[0]),
            (paced("a write and nothing else", STREAMS[0]), &self.write_us[0]),
            (paced("a token", STREAMS[1]), &self.token_us[1]),
            (paced("a write and nothing else", STREAMS[1]), &self.write_us[1]),
        ] {
            say(format_args!("| {what} | {} |", precise(values)));
        }
        say(format_args!("| requests/s that a core has time for | {:.0} |", 1e6 / median(&self.request_us)));
        say(format_args!("| resident, MiB | {:.0} |", self.mib));
    }
}

fn paced(what: &str, streams: usize) -> String {
    format!("processor µs {what}, {streams} streams, {PACE_US} µs a step")
}

/// With the digits that small figures need.
fn precise(values: &[f64]) -> String {
    if median(values) >= 10.0 {
        return shown(values);
    }
    let all: Vec<_> = values.iter().map(|value| format!("{value:.3}")).collect();
    format!("{:.3} [{}]", median(values), all.join(", "))
}
