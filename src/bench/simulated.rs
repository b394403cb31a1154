//! What is simulated beside what is measured: a prefill and a decode node, mock backend with
//! fixed times, a core each. One run of other traffic is fitted; then the same traffic runs on
//! clusters of its own, and is simulated.

use std::sync::Arc;

use anyhow::{Result, bail};
use baton_lab::{
    budgets::Budgets,
    measure::{Api, Endpoint, Manner},
    report::Measured,
    simulate::{self, ClusterShape, CostShape, Limits, Link, MachineShape, ScenarioFile, fit::Fitted},
    traffic::{Arrivals, Class, Length, Shape, Workload},
};

use super::{
    cluster::{Cluster, Layout, Ratio},
    load, serve,
};
use crate::{args::BenchSimulated, simulate::show_beside, terminal::say};

/// 2 ms a step, 50 µs a prompt token, 0.5 ms an answer.
const SETTINGS: [&str; 6] = [
    "engine.backend=mock",
    "engine.page_tokens=16",
    "engine.pages=4096",
    "engine.scheduler.max_batch_tokens=512",
    "engine.scheduler.max_sequences=64",
    "engine.mock={layers=1,step_us_base=2000,prefill_us_per_token=50,decode_us_per_sequence=500}",
];
const CLUSTER: ClusterShape = ClusterShape { prefill: 1, decode: 1, local: 0 };

/// Prints the table.
///
/// # Errors
/// When a cluster does not start, or what is simulated is farther off than is borne.
pub fn run(args: &BenchSimulated) -> Result<()> {
    let fit = measure(args, &workload(args, !args.seed), "to fit")?;
    let fitted = Fitted::of(&[fit], &CLUSTER, &machine().machine(None)?)?;
    say(format_args!(
        "fitted: prompts {:.2} ms + {:.1} µs a token, answers {:.2} ms + {:.1} µs each, to and fro {:.2} ms, \
         handoff {:.2} ms",
        1e3 * fitted.prefill.base,
        1e6 * fitted.prefill.unit,
        1e3 * fitted.decode.base,
        1e6 * fitted.decode.unit,
        1e3 * fitted.front,
        1e3 * fitted.handoff
    ));
    let workload = workload(args, args.seed);
    let mut measured = Vec::new();
    for run in 1..=args.runs.max(1) {
        measured.push(measure(args, &workload, &format!("run {run}"))?);
    }
    let file = ScenarioFile {
        cluster: CLUSTER,
        machine: machine(),
        workload: workload.clone(),
        ..ScenarioFile::default()
    };
    let mut scenario = file.scenario(None)?;
    scenario.machine = fitted.on(scenario.machine);
    let run = simulate::run(scenario).run;
    let simulated = crate::simulate::measured("simulated", String::new(), workload, run);
    if !show_beside(&measured, &[simulated]) {
        bail!("what was simulated is farther from what was measured than is borne");
    }
    Ok(())
}

fn measure(args: &BenchSimulated, workload: &Workload, name: &str) -> Result<Measured> {
    let mut set: Vec<String> = SETTINGS.map(str::to_owned).into();
    set.extend(args.set.iter().cloned());
    let cluster = Cluster::start(Layout::Split(Ratio::ONE_EACH), "mock", &set)?;
    load::runtime()?.block_on(async {
        let manner = Manner { api: Api::Completions, vocabulary: Some(load::BYTES), ..Manner::default() };
        let endpoint = Arc::new(Endpoint::connect(&cluster.url(), manner).await?);
        serve::warm_up(&endpoint, workload, 4).await?;
        serve::once(name, &endpoint, workload.clone()).await
    })
}

fn workload(args: &BenchSimulated, seed: u64) -> Workload {
    let shape =
        Shape { input: Length::between(50, 1200), output: Length::between(10, 120), ..Shape::default() };
    let budgets = Budgets { ttft_ms: Some(200.0), itl_ms: Some(20.0), ..Budgets::default() };
    Workload {
        seed,
        sessions: args.requests,
        arrivals: Arrivals::Poisson { rate: args.rate },
        classes: vec![Class { shape, budgets, ..Class::default() }],
        ..Workload::default()
    }
}

/// What the settings say; times are fitted.
fn machine() -> MachineShape {
    let cost = Some(CostShape { base: 2e-3, unit: 5e-5, context: 0.0 });
    MachineShape {
        prefill: cost,
        decode: cost,
        kv_token_bytes: Some(32),
        page_tokens: Some(16),
        limits: Limits { pages: 4096, max_batch_tokens: 512, mixed_step_ms: 45.0, max_sequences: 64 },
        link: Link { bytes_per_second: 1e9, ..Link::default() },
        ..MachineShape::default()
    }
}
