//! Conversations whose turns begin with all that was said before, after one of a
//! few system prompts, under policies of routing that take turns run by run. Four
//! prefill and two decode nodes in one process, mock backend.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use baton_lab::{
    budgets::Budgets,
    measure::{Figures, Run, Summary},
    traffic::{Arrivals, Class, Length, Prefixes, Shape, Workload},
};

use super::{
    foretold::{self, Ratios},
    load, median,
    process::ServerProcess,
    shown,
};
use crate::{args, terminal::say};

/// A token of a prompt takes 0.3 ms; a pool holds some 20 conversations.
const SETTINGS: [&str; 7] = [
    "cluster=routing",
    "model=mock",
    "nodes=[{id='p1',roles=['prefill']},{id='p2',roles=['prefill']},{id='p3',roles=['prefill']},\
     {id='p4',roles=['prefill']},{id='d1',roles=['decode']},{id='d2',roles=['decode']},\
     {id='c',roles=['coordinator']}]",
    "engine.backend=mock",
    "engine.pages=4096",
    "engine.page_tokens=16",
    "engine.mock={prefill_us_per_token=300,step_us_base=1000,decode_us_per_sequence=100}",
];

/// Prints the table.
///
/// # Errors
/// When a server does not start, or an answer does not come.
pub fn run(args: &args::BenchRouting) -> Result<()> {
    let runtime = load::runtime()?;
    let workload = workload(args);
    let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    let mut errors = Errors::default();
    for _ in 0..args.runs.max(1) {
        for policy in &args.policy {
            let ours = SETTINGS.map(str::to_owned).into_iter();
            let set = ours.chain(args.settings.set.clone()).chain([format!("coordinator.policy={policy}")]);
            let server =
                ServerProcess::start(&args::Settings { set: set.collect(), ..args.settings.clone() })?;
            let run = runtime.block_on(async {
                load::run(&load::completions(&server.url(), load::WORDS_OF_BYTES).await?, &workload).await
            })?;
            let unanswered = run.records.iter().filter(|record| !record.is_answered()).count();
            ensure!(unanswered == 0, "{policy}: {unanswered} turns were not answered");
            if policy == "predicted" {
                errors.take(&runtime.block_on(foretold::metrics(&server.url()))?)?;
            }
            runs.entry(policy).or_default().push(run);
        }
    }
    say(format_args!(
        "| policy | turns/s | of these in {} ms | ratio to {}, pairs | TTFT p50/p99 ms |",
        args.ttft_ms, args.policy[0]
    ));
    say("|---|---|---|---|---|");
    for policy in &args.policy {
        let figures = |policy: &str| -> Vec<Figures> {
            runs[policy].iter().map(|run| Summary::of(run, &workload.classes).all).collect()
        };
        let good = |policy: &str| figures(policy).iter().map(|of| of.goodput).collect::<Vec<_>>();
        let pairs: Vec<f64> =
            good(policy).iter().zip(good(&args.policy[0])).map(|(one, first)| one / first).collect();
        let rates: Vec<f64> = figures(policy).iter().map(|of| of.requests_per_second).collect();
        let ttft = Summary::of(&load::together(&runs[policy.as_str()]), &workload.classes).all.ttft;
        say(format_args!(
            "| {policy} | {} | {} | {:.2} | {:.0} / {:.0} |",
            shown(&rates),
            shown(&good(policy)),
            median(&pairs),
            ttft.p50 * 1e3,
            ttft.p99 * 1e3
        ));
    }
    if args.policy.iter().any(|policy| policy == "predicted") { errors.report() } else { Ok(()) }
}

/// How far `predicted` was from what came.
#[derive(Default)]
struct Errors {
    ttft: Ratios,
    itl: Ratios,
}

impl Errors {
    fn take(&mut self, metrics: &str) -> Result<()> {
        self.ttft.take(metrics, foretold::TTFT)?;
        self.itl.take(metrics, foretold::ITL)
    }

    fn report(&self) -> Result<()> {
        say("\n| foretold by `predicted` | error p50 | p90 |");
        say("|---|---|---|");
        for (what, ratios) in [("time to first token", &self.ttft), ("time between tokens", &self.itl)] {
            let [p50, p90] = [ratios.error(0.5)?, ratios.error(0.9)?].map(|error| error * 1e2);
            say(format_args!("| {what} | {p50:.1} % | {p90:.1} % |"));
        }
        Ok(())
    }
}

/// Clients who hold one conversation after the other; the same for the same seed.
fn workload(args: &args::BenchRouting) -> Workload {
    let shape = Shape {
        input: Length::between(128, 383),
        output: Length::between(16, 47),
        turns: Length::fixed(args.turns),
        prefixes: Prefixes { tokens: 512, count: 8 },
        ..Shape::default()
    };
    let budgets = Budgets { ttft_ms: Some(args.ttft_ms as f64), ..Budgets::default() };
    Workload {
        seed: args.seed,
        sessions: args.conversations,
        arrivals: Arrivals::Closed { clients: args.clients },
        classes: vec![Class { shape, budgets, ..Class::default() }],
        ..Workload::default()
    }
}
