//! Any server of the OpenAI API under any traffic: the field's measures.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use baton_lab::{
    measure::{self, Endpoint, Record, Summary},
    report::{Measured, RunFile, Table, tables},
    traffic::{Arrivals, Workload},
};

use super::load;
use crate::{
    args::{BenchServe, Output},
    terminal::{CountBar, note, say},
};

/// Prints the tables and writes the files.
///
/// # Errors
/// When a server does not answer as one, or no request was answered.
pub fn run(args: &BenchServe) -> Result<()> {
    let runs = load::runtime()?.block_on(measure(args))?;
    show(&runs, &args.output)?;
    let answered = |run: &Measured| run.summary.all.answered > 0;
    ensure!(runs.iter().any(answered), "no request was answered");
    Ok(())
}

async fn measure(args: &BenchServe) -> Result<Vec<Measured>> {
    let workload = args.questions.workload()?;
    let mut servers = Vec::new();
    for url in &args.urls {
        let (name, base) = split_name(url);
        let endpoint = Endpoint::connect(base, args.manner.manner()).await;
        let endpoint = Arc::new(endpoint.with_context(|| format!("server {name}"))?);
        warm_up(&endpoint, &workload, args.warm_up).await?;
        servers.push((name, endpoint));
    }
    let mut runs = Vec::new();
    for number in 1..=args.runs.max(1) {
        for (name, endpoint) in &servers {
            let name = if args.runs > 1 { format!("{name} {number}") } else { (*name).to_owned() };
            // Another run asks other questions, which no cache knows.
            let workload =
                Workload { seed: workload.seed.wrapping_add(number as u64 - 1), ..workload.clone() };
            runs.push(once(&name, endpoint, workload).await?);
        }
    }
    Ok(runs)
}

/// `NAME=URL`, or a URL that is its own name.
pub(super) fn split_name(url: &str) -> (&str, &str) {
    // A URL may hold the sign too, behind its scheme.
    match url.split_once('=') {
        Some((name, base)) if !name.contains("://") => (name, base),
        _ => (url, url),
    }
}

/// Measures a workload, with a bar.
pub(super) async fn once(name: &str, endpoint: &Arc<Endpoint>, workload: Workload) -> Result<Measured> {
    let traffic = workload.traffic()?;
    let bar = CountBar::start(name, traffic.requests());
    let run = measure::run(endpoint, traffic, &workload.classes, |records: &[Record]| {
        let failed = records.iter().filter(|record| !record.is_answered()).count();
        bar.advance(records.len(), failed);
    });
    let run = run.await?;
    bar.finish();
    let summary = Summary::of(&run, &workload.classes);
    let (url, model) = (endpoint.base().to_owned(), endpoint.model().to_owned());
    Ok(Measured { name: name.to_owned(), url, model, workload, summary, run })
}

/// What a server does only once is not what is measured.
pub(super) async fn warm_up(endpoint: &Arc<Endpoint>, workload: &Workload, requests: usize) -> Result<()> {
    if requests > 0 {
        let arrivals = Arrivals::Closed { clients: 1 };
        let before = Workload {
            seed: !workload.seed,
            sessions: requests,
            arrivals,
            seconds: None,
            ..workload.clone()
        };
        load::run(endpoint, &before).await?;
    }
    Ok(())
}

fn show(runs: &[Measured], output: &Output) -> Result<()> {
    let (throughput, latency) = (tables::throughput(runs), tables::latency(runs));
    let (overhead, engines) = (tables::overhead(runs), tables::engines(runs));
    let shown: Vec<&Table> =
        if output.engines { vec![&engines] } else { vec![&throughput, &latency, &overhead] };
    let text = shown.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    say(text.trim_end());
    for run in runs {
        if let Some(doubt) = tables::doubt(run) {
            note(format_args!("{}: {doubt}", run.name));
        }
        if let Some(why) = run.run.records.iter().find_map(why_failed) {
            note(format_args!("{}: {} failed, the first: {why}", run.name, run.summary.all.failed));
        }
        if run.summary.all.other_length > 0 {
            let count = run.summary.all.other_length;
            note(format_args!("{}: {count} answers have another length than asked for", run.name));
        }
    }
    if let Some(path) = &output.markdown {
        let all = [&throughput, &latency, &overhead, &engines].map(ToString::to_string).join("\n");
        write(path, &all)?;
    }
    if let Some(path) = &output.csv {
        write(path, &tables::requests(runs).csv())?;
    }
    if let Some(path) = &output.json {
        RunFile::new(runs.to_vec()).save(path)?;
    }
    Ok(())
}

fn why_failed(record: &Record) -> Option<&str> {
    match &record.outcome {
        measure::Outcome::Failed { why } => Some(why),
        _ => None,
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
