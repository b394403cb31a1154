//! One answer with a budget between tokens among many without: with the budget
//! and without it, taking turns. One node, mock backend: a step takes 5 ms, and
//! 2 ms an answer.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures::future::join_all;
use tokio::time::sleep;

use super::{
    call::{Called, Caller},
    process::ServerProcess,
};
use crate::{args, client::quantile, terminal::say};

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(args, Arc::new(Caller::new(server.addr())?)))
}

async fn measure(args: &args::BenchBudgets, caller: Arc<Caller>) -> Result<()> {
    say("| budget | its time between tokens, p50/p90/p99 ms | that of the others |");
    say("|---|---|---|");
    let (mut with, mut without) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    // What the node learns of its steps it learns before.
    among(&caller, args.others, None).await?;
    for _ in 0..args.runs.max(1) {
        for (itl_ms, (own, others)) in [(None, &mut without), (Some(args.itl_ms), &mut with)] {
            let (one, rest) = among(&caller, args.others, itl_ms).await?;
            own.extend(one.gaps);
            others.extend(rest.into_iter().flat_map(|called| called.gaps));
        }
    }
    for (name, (own, others)) in [("none".to_owned(), without), (format!("{} ms", args.itl_ms), with)] {
        say(format_args!("| {name} | {} | {} |", words(&own), words(&others)));
    }
    Ok(())
}

/// One answer with this budget, and the others.
async fn among(caller: &Caller, others: usize, itl_ms: Option<u64>) -> Result<(Called, Vec<Called>)> {
    let prompt = || -> Vec<u32> { (0..PROMPT).map(|_| fastrand::u32(32..127)).collect() };
    let rest = join_all((0..others).map(|_| {
        let prompt = prompt();
        async move { caller.complete(&prompt, OTHERS_OUTPUT).await }
    }));
    let one = async {
        sleep(HEAD_START).await;
        caller.complete_within(&prompt(), OUTPUT, itl_ms).await
    };
    let (one, rest) = tokio::join!(one, rest);
    ensure!(one.is_whole && rest.iter().all(|called| called.is_whole), "an answer did not come");
    Ok((one, rest))
}

fn words(gaps: &[Duration]) -> String {
    let ms = |share| format!("{:.1}", quantile(gaps, share).as_secs_f64() * 1e3);
    [0.5, 0.9, 0.99].map(ms).join(" / ")
}
