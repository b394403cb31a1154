//! `baton simulate`: clusters of thousands of nodes on one core.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use baton_coordinator::PolicyName;
use baton_lab::{
    budgets::Budgets,
    measure::{Run, Summary},
    report::{
        Measured, Plot, RunFile, Series, Table,
        html::{self, Section},
        tables,
    },
    simulate::{self, ClusterShape, MachineShape, ScenarioFile, Simulated, compare, fit::Fitted},
    slo::{Bracket, Side, SloFile, Trial},
    traffic::Workload,
};
use serde::Deserialize;

use crate::{
    args::{MachineArgs, Simulate},
    bench::serve::write,
    terminal::say,
};

/// A scenario that was run.
struct Done {
    cluster: ClusterShape,
    simulated: Simulated,
    measured: Measured,
    wall: f64,
}

/// Requests whose times are plotted, at most.
const PLOTTED: usize = 20_000;
/// Over the table of them.
const STEERED: &str = "What the coordinator did about nodes";
/// Parts of the scenario that show how cost grows.
const GROWTH: [f64; 4] = [1.0 / 64.0, 1.0 / 16.0, 0.25, 1.0];

/// Simulates, prints the tables and writes the files.
///
/// # Errors
/// When the scenario cannot be, a file cannot be read or written, or what was simulated is
/// farther from what was measured than is borne.
pub fn run(args: &Simulate) -> Result<()> {
    let file = scenario(args)?;
    match &args.against {
        Some(path) => against(args, &file, path),
        None => alone(args, &file),
    }
}

fn alone(args: &Simulate, file: &ScenarioFile) -> Result<()> {
    let parts: &[f64] = if args.growth { &GROWTH } else { &[1.0] };
    let mut costs = Table::new([
        "nodes",
        "requests",
        "simulated s",
        "took s",
        "events",
        "decision p50 µs",
        "p99 µs",
        "max µs",
    ]);
    let mut last = None;
    for &part in parts {
        let done = once(&args.machine, scaled(file.clone(), part), "simulated")?;
        costs.push(cost(&done));
        last = Some(done);
    }
    let done = last.context("nothing was simulated")?;
    let runs = std::slice::from_ref(&done.measured);
    let (throughput, latency, engines) =
        (tables::throughput(runs), tables::latency(runs), tables::engines(runs));
    let shown = if args.written.engines {
        engines.to_string()
    } else {
        format!("{throughput}\n{latency}\n{}{}", busy(&done), about_nodes(&done))
    };
    say(format_args!("{shown}\n{costs}{}", memory()));
    if let Some(path) = &args.written.markdown {
        write(path, &format!("{throughput}\n{latency}\n{engines}\n{}\n{costs}", steered(&done)))?;
    }
    if let Some(path) = &args.written.csv {
        write(path, &tables::requests(runs).csv())?;
    }
    if let Some(path) = &args.html {
        let table = (!done.simulated.done.is_empty()).then(|| steered(&done));
        let table = table.map(|table| Section::Table(STEERED.to_owned(), table));
        let more: Vec<_> = [Section::Plot(roles(&done))].into_iter().chain(table).collect();
        write(path, &html::slo(&[("simulated".to_owned(), page(&done.measured))], &more))?;
    }
    if let Some(path) = &args.written.json {
        RunFile::new(vec![done.measured]).save(path)?;
    }
    Ok(())
}

fn against(args: &Simulate, file: &ScenarioFile, path: &Path) -> Result<()> {
    let runs = RunFile::load(path)?.runs;
    ensure!(!runs.is_empty(), "{} has no run", path.display());
    let mut simulated = Vec::new();
    for run in &runs {
        let file = ScenarioFile { workload: run.workload.clone(), ..file.clone() };
        simulated.push(once(&args.machine, file, &format!("{} simulated", run.name))?.measured);
    }
    let holds = show_beside(&runs, &simulated);
    if let Some(path) = &args.written.json {
        RunFile::new(simulated).save(path)?;
    }
    ensure!(holds, "what was simulated is farther from what was measured than is borne");
    Ok(())
}

/// Prints measured and simulated runs of the same traffic; whether all errors are borne.
pub(crate) fn show_beside(measured: &[Measured], simulated: &[Measured]) -> bool {
    fn all(runs: &[Measured]) -> Vec<&baton_lab::measure::Figures> {
        runs.iter().map(|run| &run.summary.all).collect()
    }
    let compared = compare::compare(&all(measured), &all(simulated));
    say(compare::table(&compared).to_string().trim_end());
    compared.iter().all(compare::Compared::holds)
}

/// The file's scenario, with what options say in its place.
fn scenario(args: &Simulate) -> Result<ScenarioFile> {
    let mut file = match &args.scenario {
        Some(path) => toml::from_str::<ScenarioFile>(&crate::config::read(path)?)
            .with_context(|| format!("{} is no scenario", path.display()))?,
        None => ScenarioFile { workload: args.questions.workload()?, ..ScenarioFile::default() },
    };
    file.workload = args.questions.over(file.workload);
    file.cluster = args.cluster(file.cluster);
    file.machine = args.machine.over(file.machine);
    if let Some(name) = &args.policy {
        let name = serde_json::Value::from(name.as_str());
        file.coordinator.policy = PolicyName::deserialize(name).context("--policy")?;
    }
    Ok(file)
}

/// A part of its nodes, and of its traffic.
fn scaled(mut file: ScenarioFile, part: f64) -> ScenarioFile {
    let of = |count: usize| if count == 0 { 0 } else { ((count as f64 * part).round() as usize).max(1) };
    let ClusterShape { prefill, decode, local } = file.cluster;
    file.cluster = ClusterShape { prefill: of(prefill), decode: of(decode), local: of(local) };
    file.workload.sessions = of(file.workload.sessions);
    if let Some(rate) = file.workload.arrivals.rate() {
        file.workload.arrivals = file.workload.arrivals.with_rate(rate * part);
    }
    file
}

fn once(machine: &MachineArgs, file: ScenarioFile, name: &str) -> Result<Done> {
    let (workload, cluster) = (file.workload.clone(), file.cluster);
    let config = config(&file.machine)?;
    let model = file.machine.shape.clone().unwrap_or_default();
    let mut scenario = file.scenario(config.as_deref())?;
    if let Some(path) = &machine.fit {
        scenario.machine = fitted(path, &cluster, &scenario.machine)?.on(scenario.machine);
    }
    let began = Instant::now();
    let mut simulated = simulate::run(scenario);
    let wall = began.elapsed().as_secs_f64();
    let run = std::mem::take(&mut simulated.run);
    let measured = measured(name, model, workload, run);
    Ok(Done { cluster, simulated, measured, wall })
}

/// What was simulated, as if it had been measured.
pub(crate) fn measured(name: &str, model: String, workload: Workload, run: Run) -> Measured {
    let summary = Summary::of(&run, &workload.classes);
    Measured { name: name.to_owned(), url: "simulated".to_owned(), model, workload, summary, run }
}

/// The figures of a file of runs.
pub(crate) fn fitted(path: &Path, cluster: &ClusterShape, machine: &simulate::Machine) -> Result<Fitted> {
    let runs = RunFile::load(path)?.runs;
    Fitted::of(&runs, cluster, machine).with_context(|| format!("{} cannot be fitted", path.display()))
}

/// The text of a shape's config.json.
pub(crate) fn config(machine: &MachineShape) -> Result<Option<String>> {
    let Some(shape) = &machine.shape else { return Ok(None) };
    let path = crate::bench::shape_path(Path::new(shape)).join("config.json");
    Ok(Some(crate::config::read(&path)?))
}

fn cost(done: &Done) -> Vec<String> {
    let (cost, decision) = (&done.simulated.cost, done.simulated.cost.decision());
    let mut row = vec![done.cluster.nodes().to_string(), done.measured.summary.all.requests.to_string()];
    row.extend([cost.seconds, done.wall].map(|seconds| format!("{seconds:.1}")));
    row.push(cost.events.to_string());
    row.extend([decision.p50, decision.p99, decision.max].map(|seconds| format!("{:.1}", 1e6 * seconds)));
    row
}

fn busy(done: &Done) -> Table {
    let mut table = Table::new(["nodes", "count", "busy, mean", "p50", "p99", "max"]);
    for (name, of) in ["prefill", "decode", "both"].into_iter().zip(done.simulated.busy) {
        if of.count > 0 {
            let shares = [of.mean, of.p50, of.p99, of.max].map(|share| format!("{:.1} %", 1e2 * share));
            table.push([name.to_owned(), of.count.to_string()].into_iter().chain(shares).collect());
        }
    }
    table
}

/// What was done about nodes, and how often answers gave their pages back; nothing if neither was.
fn about_nodes(done: &Done) -> String {
    let Simulated { done: all, preempted, .. } = &done.simulated;
    let mut text = String::new();
    if !all.is_empty() {
        text += &format!("\n{}", steered(done));
    }
    if *preempted > 0 {
        text += &format!("\n{preempted} answers gave their pages to older ones and were computed again\n");
    }
    text
}

/// What the coordinator did about nodes.
fn steered(done: &Done) -> Table {
    let mut table = Table::new(["at s", "node", "since then"]);
    for one in &done.simulated.done {
        table.push(vec![format!("{:.1}", one.at_ms as f64 / 1e3), one.node.clone(), one.what.to_string()]);
    }
    table
}

/// Nodes by role over time, in steps.
fn roles(done: &Done) -> Plot {
    let Simulated { roles, cost, .. } = &done.simulated;
    let series = ["prefill", "decode"].into_iter().enumerate().map(|(role, name)| {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (at, counts) in roles {
            points.extend(points.last().map(|(_, before)| (*at, *before)));
            points.push((*at, counts[role] as f64));
        }
        points.extend(points.last().map(|(_, last)| (cost.seconds, *last)));
        Series { name: name.to_owned(), points, dots: false }
    });
    Plot {
        title: "Nodes by role".to_owned(),
        x: "seconds",
        y: "nodes that take such work",
        x_is_log: false,
        y_range: Some((0.0, done.cluster.nodes() as f64)),
        mark: None,
        series: series.collect(),
    }
}

/// The most memory that this process has had, where the system tells it.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = most.and_then(|most| most.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or_else(String::new, |kib| format!("\nmost memory: {:.2} GiB", kib / 1024.0 / 1024.0))
}

/// A search of one trial: what the page shows. Of many requests some are plotted.
fn page(measured: &Measured) -> SloFile {
    let every = measured.run.records.len().div_ceil(PLOTTED).max(1);
    let records = measured.run.records.iter().step_by(every).cloned().collect();
    let run = Run { records, kv_usage: measured.run.kv_usage.clone(), ..Run::default() };
    let shown = Measured { run, ..without_records(measured) };
    let rate = measured.summary.all.requests as f64 / measured.summary.all.seconds.max(f64::EPSILON);
    let budgets = measured.workload.classes.first().map_or_else(Budgets::default, |class| class.budgets);
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut file = SloFile::new(format!("baton {command}"), 0.9, budgets);
    file.sides.push(Side {
        name: measured.name.clone(),
        settings: Vec::new(),
        trials: vec![Trial { rate, runs: vec![shown] }],
        bracket: Bracket::default(),
    });
    file
}

fn without_records(of: &Measured) -> Measured {
    Measured {
        name: of.name.clone(),
        url: of.url.clone(),
        model: of.model.clone(),
        workload: of.workload.clone(),
        summary: of.summary.clone(),
        run: Run::default(),
    }
}
