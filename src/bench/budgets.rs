//! One answer with a budget between tokens among many without: with the budget
//! and without it, taking turns. One node, mock backend: a step takes 5 ms, and
//! 2 ms an answer.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use baton_lab::{
    budgets::Budgets,
    measure::{self, Endpoint, Record, Spread},
    traffic::{Class, Piece, Session, Traffic},
};

use super::{load, process::ServerProcess};
use crate::{args, terminal::say};

const SETTINGS: [&str; 3] =
    ["model=mock", "engine.backend=mock", "engine.mock={step_us_base=5000,decode_us_per_sequence=2000}"];
const PROMPT: usize = 40;
/// Tokens of the answer that is looked at, and of the others, which begin before and end after it.
const OUTPUT: usize = 60;
const OTHERS_OUTPUT: usize = 110;
const HEAD_START: Duration = Duration::from_secs(1);

/// Prints the table.
///
/// # Errors
/// When the server does not start, or an answer does not come.
pub fn run(args: &args::BenchBudgets) -> Result<()> {
    let set = SETTINGS.map(str::to_owned).into();
    let server = ServerProcess::start(&args::Settings { set, ..args::Settings::default() })?;
    load::runtime()?.block_on(measure(args, &server.url()))
}

async fn measure(args: &args::BenchBudgets, url: &str) -> Result<()> {
    let endpoint = load::completions(url, load::BYTES).await?;
    say("| budget | its time between tokens, p50/p90/p99 ms | that of the others |");
    say("|---|---|---|");
    let (mut with, mut without) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    // What the node learns of its steps it learns before.
    among(&endpoint, args.others, None).await?;
    for _ in 0..args.runs.max(1) {
        for (itl_ms, (own, others)) in [(None, &mut without), (Some(args.itl_ms), &mut with)] {
            let (one, rest) = among(&endpoint, args.others, itl_ms).await?;
            own.extend(gaps(&one));
            others.extend(gaps(&rest));
        }
    }
    for (name, (own, others)) in [("none".to_owned(), without), (format!("{} ms", args.itl_ms), with)] {
        say(format_args!("| {name} | {} | {} |", words(own), words(others)));
    }
    Ok(())
}

/// One answer with this budget, and the others.
async fn among(
    endpoint: &Arc<Endpoint>,
    others: usize,
    itl_ms: Option<u64>,
) -> Result<(Vec<Record>, Vec<Record>)> {
    let asked = |at, class, tokens| {
        let said = Piece::Drawn { seed: fastrand::u64(..), tokens: PROMPT };
        Session::single(at, class, said, tokens)
    };
    let mut sessions: Vec<_> = (0..others).map(|_| asked(Duration::ZERO, 0, OTHERS_OUTPUT)).collect();
    sessions.push(asked(HEAD_START, 1, OUTPUT));
    let budgets = Budgets { itl_ms: itl_ms.map(|ms| ms as f64), ..Budgets::default() };
    let classes = [Class::default(), Class { budgets, ..Class::default() }];
    let run = measure::run(endpoint, Traffic { sessions, ..Traffic::default() }, &classes, |_| {}).await?;
    ensure!(run.records.iter().all(Record::is_answered), "an answer did not come");
    Ok(run.records.into_iter().partition(|record| record.class == 1))
}

/// Milliseconds.
fn gaps(records: &[Record]) -> impl Iterator<Item = f64> {
    records.iter().flat_map(|record| record.gaps.iter().map(|&gap| f64::from(gap) * 1e3))
}

fn words(gaps: Vec<f64>) -> String {
    let spread = Spread::of(gaps);
    [spread.p50, spread.p90, spread.p99].map(|ms| format!("{ms:.1}")).join(" / ")
}
