//! Time between tokens while nodes change their roles, and while they do not,
//! taking turns. Two prefill and two decode nodes in one process, mock backend:
//! a step takes 50 ms, so that most answers live through several changes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    call::{Called, Caller},
    median,
    process::ServerProcess,
    shown,
};
use crate::{args, client::quantile, terminal::say};

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
    gaps: Vec<Duration>,
    /// Between one answer's first token and the next one's, the longest.
    longest: Duration,
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
    let http = reqwest::Client::builder().no_proxy().build()?;
    let operator = Operator { http, url: format!("http://{}", server.admin().context("no admin API")?) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args, &Caller::new(server.addr())?, &operator))
}

async fn measure(args: &args::BenchFlip, caller: &Caller, operator: &Operator) -> Result<()> {
    let (mut still, mut changing) = (Runs::default(), Runs::default());
    let every = Duration::from_millis(args.every_ms);
    // What nodes learn of their steps they learn before.
    load(caller, args.callers, Instant::now() + Duration::from_secs(3)).await;
    for _ in 0..args.runs.max(1) {
        let end = || Instant::now() + Duration::from_secs(args.seconds);
        let until = end();
        still.take(&load(caller, args.callers, until).await, until);
        let until = end();
        let (answers, changes) =
            tokio::join!(load(caller, args.callers, until), operator.change_until(until, every));
        changing.changes += changes?;
        changing.take(&answers, until);
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

/// Callers who ask again when they have their answers; each answer with the time at which it was asked for.
async fn load(caller: &Caller, callers: usize, until: Instant) -> Vec<(Instant, Called)> {
    let one = async || {
        let mut calls = Vec::new();
        while Instant::now() < until {
            let prompt: Vec<u32> = (0..PROMPT).map(|_| fastrand::u32(32..127)).collect();
            let sent = Instant::now();
            calls.push((sent, caller.complete(&prompt, fastrand::usize(OUTPUT)).await));
        }
        calls
    };
    join_all((0..callers).map(|_| one())).await.concat()
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
    /// Takes in a run in which calls were begun until then.
    fn take(&mut self, calls: &[(Instant, Called)], until: Instant) {
        let gaps: Vec<_> = calls.iter().flat_map(|(_, called)| called.gaps.iter().copied()).collect();
        self.p99_ms.push(ms(quantile(&gaps, 0.99)));
        self.gaps.extend(gaps);
        self.answers += calls.len();
        self.failed += calls.iter().filter(|(_, called)| !called.is_whole).count();
        let mut firsts: Vec<_> =
            calls.iter().filter_map(|(sent, called)| Some(*sent + called.first?)).collect();
        firsts.sort_unstable();
        // Afterwards nobody asks any more.
        let silences = firsts.windows(2).filter(|pair| pair[0] < until).map(|pair| pair[1] - pair[0]);
        self.longest = silences.fold(self.longest, Duration::max);
    }

    fn report(&self, name: &str) {
        let Self { p99_ms, gaps, longest, answers, failed, changes } = self;
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| ms(quantile(gaps, share)));
        say(format_args!(
            "| {name} | {changes} | {answers} | {failed} | {half:.1} / {most:.1} / {all:.1} | {} | {:.0} |",
            shown(p99_ms),
            ms(*longest),
        ));
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
