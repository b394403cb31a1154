//! Servers under the same closed-loop load, taking turns run by run.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    load::{Shape, Tally, Target},
    median, shown,
};
use crate::{args, client::quantile, terminal::say};

/// A server under its name in the table.
struct Server {
    name: String,
    target: Target,
}

/// Prints the table.
///
/// # Errors
/// When a server does not answer, or a request fails.
pub fn run(args: &args::BenchHttp) -> Result<()> {
    // One thread: the servers need the others.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(args))
}

async fn measure(args: &args::BenchHttp) -> Result<()> {
    let mut servers = Vec::new();
    for url in &args.urls {
        let (name, url) = url.split_once('=').unwrap_or((url, url));
        servers.push(Server { name: name.to_owned(), target: Target::new(url).await? });
    }
    if !args.json {
        say(
            "| clients | server | output tokens/s | first over it, pairs | TTFT p50/p99 ms | ITL p50/p99 ms | time per token p50/p99 ms | failed |",
        );
        say("|---|---|---|---|---|---|---|---|");
    }
    let mut failed = 0;
    for &clients in &args.concurrency {
        let requests = (clients * args.requests).max(args.least);
        let shape =
            Shape { clients, requests, prompt_tokens: args.prompt_tokens, output_tokens: args.output_tokens };
        let mut tallies = vec![Tally::default(); servers.len()];
        for server in &servers {
            // What a server does only once is not what is measured here.
            server
                .target
                .run(Shape { requests: clients, output_tokens: 2, ..shape }, &mut Tally::default())
                .await;
        }
        for _ in 0..args.runs.max(1) {
            for (server, tally) in servers.iter().zip(&mut tallies) {
                server.target.run(shape, tally).await;
            }
        }
        for (server, tally) in servers.iter().zip(&tallies) {
            report(args, clients, &server.name, tally, &tallies[0]);
            failed += tally.errors.len();
            if let Some(error) = tally.errors.first() {
                say(format_args!("{}: {error}", server.name));
            }
        }
    }
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

fn report(args: &args::BenchHttp, clients: usize, name: &str, tally: &Tally, first: &Tally) {
    let pairs: Vec<f64> = first.rates.iter().zip(&tally.rates).map(|(first, rate)| first / rate).collect();
    let ms = |times: &[Duration], share| quantile(times, share).as_secs_f64() * 1e3;
    let both = |times: &[Duration]| [ms(times, 0.5), ms(times, 0.99)];
    let (ttft, itl, per_token) = (both(&tally.first), both(&tally.gaps), both(&tally.per_token));
    if args.json {
        say(json!({
            "clients": clients, "server": name, "tokens_per_second": tally.rates, "first_over_it": pairs,
            "ttft_ms": ttft, "itl_ms": itl, "time_per_token_ms": per_token, "failed": tally.errors.len(),
        }));
        return;
    }
    say(format_args!(
        "| {clients} | {name} | {} | {:.2} | {:.0} / {:.0} | {:.1} / {:.1} | {:.1} / {:.1} | {} |",
        shown(&tally.rates),
        median(&pairs),
        ttft[0],
        ttft[1],
        itl[0],
        itl[1],
        per_token[0],
        per_token[1],
        tally.errors.len(),
    ));
}
