//! Time between tokens while nodes change their roles, and while they do not,
//! taking turns. Two prefill and two decode nodes in one process, mock backend:
//! a step takes 50 ms, so that most answers live through several changes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use baton_lab::{
    measure::{self, Endpoint, Run, Spread},
    traffic::{Class, Piece, Session, Traffic},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{load, median, process::ServerProcess, shown};
use crate::{args, terminal::say};

const SETTINGS: [&str; 6] = [
    "cluster=flip",
    "model=mock",
    "nodes=[{id='p1',roles=['prefill']},{id='p2',roles=['prefill']},{id='d1',roles=['decode']},\
     {id='d2',roles=['decode']},{id='c',roles=['coordinator']}]",
    "engine.backend=mock",
    "engine.mock={step_us_base=50000,prefill_us_per_token=100,decode_us_per_sequence=100}",
    "admin.listen=127.0.0.1:0",
];
const PROMPT: usize = 64;
/// Tokens of an answer: 1 to 3 s.
const OUTPUT: std::ops::Range<usize> = 20..60;
/// One after the other, then all over again; after the last of them all is as at first.
const CHANGES: [(&str, &str); 4] = [("d2", "prefill"), ("p1", "decode"), ("d2", "decode"), ("p1", "prefill")];

/// Whoever changes roles.
struct Operator {
    http: reqwest::Client,
    url: String,
}

/// What came of runs of one kind.
#[derive(Default)]
struct Runs {
    p99_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    /// Seconds between one answer's first token and the next one's, at most.
    longest: f64,
    answers: usize,
    failed: usize,
    changes: usize,
}

/// Prints the table.
///
/// # Errors
/// When the server does not start, or a role cannot be changed.
pub fn run(args: &args::BenchFlip) -> Result<()> {
    let set = SETTINGS.map(str::to_owned).into();
    let server = ServerProcess::start(&args::Settings { set, ..args::Settings::default() })?;
    let http = crate::client::http(None)?;
    let operator = Operator { http, url: format!("http://{}", server.admin().context("no admin API")?) };
    load::runtime()?.block_on(measure(args, &server.url(), &operator))
}

async fn measure(args: &args::BenchFlip, url: &str, operator: &Operator) -> Result<()> {
    let endpoint = load::completions(url, load::BYTES).await?;
    let (mut still, mut changing) = (Runs::default(), Runs::default());
    let (time, every) = (Duration::from_secs(args.seconds), Duration::from_millis(args.every_ms));
    // What nodes learn of their steps they learn before.
    ask(&endpoint, args.callers, Duration::from_secs(3)).await?;
    for _ in 0..args.runs.max(1) {
        still.take(&ask(&endpoint, args.callers, time).await?, time);
        let changes = operator.change_until(Instant::now() + time, every);
        let (run, changes) = tokio::join!(ask(&endpoint, args.callers, time), changes);
        changing.changes += changes?;
        changing.take(&run?, time);
    }
    say(
        "| roles | changes | answers | failed | time between tokens, p50/p99/most ms | p99 of each run, ms | longest without a first token, ms |",
    );
    say("|---|---|---|---|---|---|---|");
    for (name, runs) in [("stay", &still), ("change", &changing)] {
        runs.report(name);
    }
    let ratios: Vec<_> = changing.p99_ms.iter().zip(&still.p99_ms).map(|(one, other)| one / other).collect();
    say(format_args!("\np99 with changes over p99 without, pairs: {:.3}", median(&ratios)));
    ensure!(changing.failed + still.failed == 0, "an answer did not come");
    Ok(())
}

/// Callers who ask again when they have their answers, for so long.
async fn ask(endpoint: &Arc<Endpoint>, callers: usize, time: Duration) -> Result<Run> {
    let session = |_| {
        let said = Piece::Drawn { seed: fastrand::u64(..), tokens: PROMPT };
        Session::single(Duration::ZERO, 0, said, fastrand::usize(OUTPUT))
    };
    // No answer takes less than a second.
    let sessions = (0..callers * (time.as_secs() as usize + 1)).map(session).collect();
    let traffic = Traffic { sessions, clients: Some(callers), until: Some(time), ..Traffic::default() };
    Ok(measure::run(endpoint, traffic, &[Class::default()], |_| {}).await?)
}

// === impl Operator ===

impl Operator {
    /// Changes roles until then, and on until all are as at first. Returns how many it changed.
    async fn change_until(&self, until: Instant, every: Duration) -> Result<usize> {
        let mut changes = 0;
        while Instant::now() < until {
            for (node, role) in CHANGES {
                sleep(every).await;
                let url = format!("{}/admin/v1/nodes/{node}/roles", self.url);
                let answer = self.http.put(url).json(&json!({ "roles": [role] })).send().await?;
                ensure!(answer.status().is_success(), "{node} to {role}: {}", answer.text().await?);
                changes += 1;
            }
        }
        Ok(changes)
    }
}

// === impl Runs ===

impl Runs {
    /// Takes in a run in which requests began for so long.
    fn take(&mut self, run: &Run, time: Duration) {
        let gaps = run.records.iter().flat_map(|record| &record.gaps).map(|&gap| f64::from(gap) * 1e3);
        let gaps: Vec<f64> = gaps.collect();
        self.p99_ms.push(Spread::of(gaps.iter().copied()).p99);
        self.gaps_ms.extend(gaps);
        self.answers += run.records.len();
        self.failed += run.records.iter().filter(|record| !record.is_answered()).count();
        let mut firsts: Vec<f64> =
            run.records.iter().filter_map(|record| Some(record.intended + record.ttft?)).collect();
        firsts.sort_by(f64::total_cmp);
        // Afterwards nobody asks any more.
        let silences = firsts.windows(2).filter(|pair| pair[0] < time.as_secs_f64());
        self.longest = silences.map(|pair| pair[1] - pair[0]).fold(self.longest, f64::max);
    }

    fn report(&self, name: &str) {
        let Self { p99_ms, gaps_ms, longest, answers, failed, changes } = self;
        let Spread { p50, p99, max, .. } = Spread::of(gaps_ms.iter().copied());
        say(format_args!(
            "| {name} | {changes} | {answers} | {failed} | {p50:.1} / {p99:.1} / {max:.1} | {} | {:.0} |",
            shown(p99_ms),
            longest * 1e3,
        ));
    }
}
