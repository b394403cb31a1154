//! Servers under the same closed-loop load, taking turns run by run.

use std::sync::Arc;

use anyhow::{Result, ensure};
use baton_lab::measure::{Endpoint, Run, Spread, Summary};
use serde_json::json;

use super::{load, median, shown};
use crate::{args, terminal::say};

/// A server under its name in the table.
struct Server {
    name: String,
    endpoint: Arc<Endpoint>,
}

/// Prints the table.
///
/// # Errors
/// When a server does not answer, or a request fails.
pub fn run(args: &args::BenchHttp) -> Result<()> {
    load::runtime()?.block_on(measure(args))
}

async fn measure(args: &args::BenchHttp) -> Result<()> {
    let mut servers = Vec::new();
    for url in &args.urls {
        let (name, url) = url.split_once('=').unwrap_or((url, url));
        let endpoint = load::completions(url, load::COMMON).await?;
        servers.push(Server { name: name.to_owned(), endpoint });
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
        for server in &servers {
            // What a server does only once is not what is measured here.
            load::run(&server.endpoint, &load::closed(clients, clients, (args.prompt_tokens, 2))).await?;
        }
        let mut runs = vec![Vec::new(); servers.len()];
        for _ in 0..args.runs.max(1) {
            for (server, runs) in servers.iter().zip(&mut runs) {
                let workload = load::closed(clients, requests, (args.prompt_tokens, args.output_tokens));
                runs.push(load::run(&server.endpoint, &workload).await?);
            }
        }
        for (server, of_server) in servers.iter().zip(&runs) {
            let faults: Vec<_> = of_server
                .iter()
                .flat_map(|run| {
                    run.records.iter().filter_map(|record| load::fault(record, args.prompt_tokens))
                })
                .collect();
            report(args, (clients, &server.name, faults.len()), of_server, &runs[0]);
            failed += faults.len();
            if let Some(fault) = faults.first() {
                say(format_args!("{}: {fault}", server.name));
            }
        }
    }
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

fn rates(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| Summary::of(run, &[]).all.output_per_second).collect()
}

fn report(args: &args::BenchHttp, row: (usize, &str, usize), runs: &[Run], first: &[Run]) {
    let (clients, name, failed) = row;
    let (rates, first) = (rates(runs), rates(first));
    let pairs: Vec<f64> = first.iter().zip(&rates).map(|(first, rate)| first / rate).collect();
    let all = Summary::of(&load::together(runs), &[]).all;
    let both = |spread: Spread| [spread.p50 * 1e3, spread.p99 * 1e3];
    let (ttft, itl, per_token) = (both(all.ttft), both(all.itl), both(all.tpot));
    if args.json {
        say(json!({
            "clients": clients, "server": name, "tokens_per_second": rates, "first_over_it": pairs,
            "ttft_ms": ttft, "itl_ms": itl, "time_per_token_ms": per_token, "failed": failed,
        }));
        return;
    }
    say(format_args!(
        "| {clients} | {name} | {} | {:.2} | {:.0} / {:.0} | {:.1} / {:.1} | {:.1} / {:.1} | {failed} |",
        shown(&rates),
        median(&pairs),
        ttft[0],
        ttft[1],
        itl[0],
        itl[1],
        per_token[0],
        per_token[1],
    ));
}
