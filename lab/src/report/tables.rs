//! The tables of runs.

use super::{Measured, Table};
use crate::measure::{Figures, Outcome, Record, Spread};

/// What was answered, how fast, and how much of it in time: a row for each run and class.
pub fn throughput(runs: &[Measured]) -> Table {
    let mut table = Table::new([
        "run",
        "class",
        "requests",
        "answered",
        "refused",
        "failed",
        "answers/s",
        "output tokens/s",
        "tokens/s",
        "cached",
        "attainment",
        "goodput/s",
    ]);
    for (name, of) in rows(runs) {
        let counts = [of.requests, of.answered, of.refused, of.failed].map(|count| count.to_string());
        let rates = [of.requests_per_second, of.output_per_second, of.tokens_per_second];
        let cached = of.cached_tokens as f64 / of.prompt_tokens.max(1) as f64;
        let mut row = vec![name.to_owned(), of.name.clone()];
        row.extend(counts);
        row.extend(rates.map(|rate| format!("{rate:.2}")));
        row.extend([percent(cached), percent(of.attainment), format!("{:.2}", of.goodput)]);
        table.push(row);
    }
    table
}

/// How long things took: a row for each run, class and time.
pub fn latency(runs: &[Measured]) -> Table {
    let mut table = Table::new(["run", "class", "ms", "mean", "p50", "p90", "p95", "p99", "max"]);
    for (name, of) in rows(runs) {
        for (time, spread) in [("TTFT", of.ttft), ("ITL", of.itl), ("TPOT", of.tpot), ("E2E", of.e2e)] {
            if spread.count == 0 {
                continue;
            }
            let Spread { mean, p50, p90, p95, p99, max, .. } = spread;
            let mut row = vec![name.to_owned(), of.name.clone(), time.to_owned()];
            row.extend([mean, p50, p90, p95, p99, max].map(ms));
            table.push(row);
        }
    }
    table
}

/// What measuring took itself: a row for each run.
pub fn overhead(runs: &[Measured]) -> Table {
    let mut table = Table::new([
        "run",
        "sent late, p50 ms",
        "p99 ms",
        "max ms",
        "of a core",
        "events/s",
        "processor µs an event",
    ]);
    for Measured { name, run, .. } in runs {
        let of = &run.overhead;
        table.push(vec![
            name.clone(),
            ms(of.lag.p50),
            ms(of.lag.p99),
            ms(of.lag.max),
            percent(of.cpu_share()),
            format!("{:.0}", of.events as f64 / of.seconds.max(f64::EPSILON)),
            format!("{:.1}", 1e6 * of.cpu_seconds / of.events.max(1) as f64),
        ]);
    }
    table
}

/// As engines are compared in public. Latency is the time between tokens, and
/// memory efficiency the greatest share of KV pages in use, as the server tells it.
pub fn engines(runs: &[Measured]) -> Table {
    let mut table = Table::new([
        "engine",
        "throughput (tok/s)",
        "P50 latency (ms)",
        "P99 latency (ms)",
        "memory efficiency",
        "TTFT (ms)",
    ]);
    for Measured { name, summary, run, .. } in runs {
        let of = &summary.all;
        let fullest = run.kv_usage.iter().copied().max_by(f64::total_cmp);
        table.push(vec![
            name.clone(),
            format!("{:.0}", of.output_per_second),
            ms(of.itl.p50),
            ms(of.itl.p99),
            fullest.map_or("not told".to_owned(), percent),
            ms(of.ttft.p50),
        ]);
    }
    table
}

/// Every request of every run: a row each, times in milliseconds.
pub fn requests(runs: &[Measured]) -> Table {
    let mut table = Table::new([
        "run",
        "class",
        "session",
        "turn",
        "intended_ms",
        "sent_ms",
        "ttft_ms",
        "tpot_ms",
        "worst_itl_ms",
        "e2e_ms",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "outcome",
        "queue_ms",
        "prefill_ms",
        "transfer_ms",
        "wait_ms",
        "decode_ms",
    ]);
    for Measured { name, workload, run, .. } in runs {
        for record in &run.records {
            let class = workload.classes.get(record.class).map_or("", |class| class.name.as_str());
            let mut row = vec![name.clone(), class.to_owned()];
            row.extend(request(record));
            table.push(row);
        }
    }
    table
}

/// Whether a run shows the server rather than the client; otherwise why not.
pub fn doubt(measured: &Measured) -> Option<String> {
    let of = &measured.run.overhead;
    let late = measured.workload.max_in_flight.is_none() && of.lag.p99 > LATE_SECONDS;
    if of.cpu_share() > BUSY {
        Some(format!("the client used {} of its core: the server may be faster", percent(of.cpu_share())))
    } else if late {
        Some(format!("requests were sent {} ms late at p99, and that counts in their times", ms(of.lag.p99)))
    } else {
        None
    }
}

const LATE_SECONDS: f64 = 0.005;
const BUSY: f64 = 0.85;

fn request(record: &Record) -> Vec<String> {
    let worst = record.gaps.iter().copied().max_by(f32::total_cmp).map(f64::from);
    let count = |tokens: Option<usize>| tokens.map_or(String::new(), |tokens| tokens.to_string());
    let seconds = |seconds: Option<f64>| seconds.map_or(String::new(), ms);
    let outcome = match &record.outcome {
        Outcome::Answered => "answered".to_owned(),
        Outcome::Refused { status, .. } => format!("refused {status}"),
        Outcome::Failed { why } => format!("failed: {why}"),
    };
    let mut row = vec![record.session.to_string(), record.turn.to_string()];
    row.extend([record.intended, record.sent].map(ms));
    row.extend([record.ttft, record.tpot(), worst, Some(record.e2e())].map(seconds));
    row.extend([record.prompt_tokens, record.cached_tokens, Some(record.output_tokens)].map(count));
    row.push(outcome);
    let phases = record.phases.map(|p| [p.queue_ms, p.prefill_ms, p.transfer_ms, p.wait_ms, p.decode_ms]);
    row.extend(phases.map_or_else(Default::default, |phases| phases.map(|ms| format!("{ms:.3}"))));
    row
}

fn rows(runs: &[Measured]) -> impl Iterator<Item = (&str, &Figures)> {
    runs.iter().flat_map(|run| run.summary.rows().map(|figures| (run.name.as_str(), figures)))
}

fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.2}") } else { format!("{ms:.1}") }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 1e2 * share)
}
