//! What the client of `bench serve` keeps up with: a server that makes no tokens, but sends canned
//! ones at their times from a core of its own.

use std::{
    convert::Infallible,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use baton_lab::{
    measure::{Api, Endpoint, Manner, Run, Summary},
    report::Table,
    traffic::{Arrivals, Class, Length, Shape, Workload},
};
use futures::stream;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, time::interval};

use super::{cluster::on_core, load};
use crate::{args::BenchClient, terminal::say};

/// A server that ends with this.
struct Canned {
    child: Child,
    url: String,
}

/// A token as our server sends it.
const EVENT: &str = "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1,\
    \"model\":\"canned\",\"choices\":[{\"index\":0,\"text\":\" one\",\"logprobs\":null,\"finish_reason\":null}]}\n\n";
/// Where its address stands.
const READY: &str = "ready at ";
/// Of what is sent in a second, so much must come in it.
const HELD: f64 = 0.98;

/// Prints the table.
///
/// # Errors
/// When the server does not start, or not even the first rate is kept up with.
pub fn run(args: &BenchClient) -> Result<()> {
    if args.server {
        return load::runtime()?.block_on(serve());
    }
    let server = Canned::start()?;
    let mut table = Table::new([
        "tokens sent/s",
        "read/s",
        "of a core",
        "processor µs a token",
        "between tokens p50 ms",
        "p99 ms",
        "max ms",
    ]);
    let mut held = Vec::new();
    for &rate in &args.rate {
        let run = load::runtime()?.block_on(measure(&server.url, rate, args))?;
        let all = Summary::of(&run, &[Class::default()]).all;
        ensure!(all.answered == all.requests, "{} of {} were answered", all.answered, all.requests);
        held.push(all.output_per_second >= HELD * rate);
        let ms = [all.itl.p50, all.itl.p99, all.itl.max].map(|seconds| format!("{:.2}", 1e3 * seconds));
        let mut row = vec![format!("{rate:.0}"), format!("{:.0}", all.output_per_second)];
        row.push(format!("{:.1} %", 1e2 * run.overhead.cpu_share()));
        row.push(format!("{:.1}", 1e6 * run.overhead.cpu_seconds / run.overhead.events.max(1) as f64));
        row.extend(ms);
        table.push(row);
    }
    say(table.to_string().trim_end());
    ensure!(held.first() == Some(&true), "the client does not keep up with the first rate");
    Ok(())
}

/// As many streams as wanted, each with its part of the rate.
async fn measure(url: &str, rate: f64, args: &BenchClient) -> Result<Run> {
    let gap = args.streams as f64 / rate;
    let fields = Map::from_iter([("gap_us".to_owned(), json!((1e6 * gap).round() as u64))]);
    let manner = Manner { api: Api::Completions, vocabulary: Some(load::BYTES), fields, ..Manner::default() };
    let endpoint = Arc::new(Endpoint::connect(url, manner).await?);
    let output = Length::fixed((args.seconds / gap).ceil() as usize);
    let shape = Shape { input: Length::fixed(16), output, ..Shape::default() };
    let workload = Workload {
        sessions: args.streams,
        arrivals: Arrivals::Closed { clients: args.streams },
        classes: vec![Class { shape, ..Class::default() }],
        ..Workload::default()
    };
    load::run(&endpoint, &workload).await
}

// === impl Canned ===

impl Canned {
    fn start() -> Result<Self> {
        let mut command: Command = on_core(1)?;
        let mut child = command.args(["bench", "client", "--server"]).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        let mut server = Self { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let url = line.trim().strip_prefix(READY).context("the server did not start")?;
        url.clone_into(&mut server.url);
        Ok(server)
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server's process, until it is killed.
async fn serve() -> Result<()> {
    let models = get(|| async { Json(json!({"data": [{"id": "canned"}]})) });
    let app = Router::new().route("/v1/models", models).route("/v1/completions", post(complete));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(format_args!("{READY}http://{}", listener.local_addr()?));
    Ok(axum::serve(listener, app).await?)
}

/// As many tokens as asked for, one each `gap_us`.
async fn complete(Json(body): Json<Value>) -> Response {
    let tokens = body["max_tokens"].as_u64().unwrap_or(1);
    let gap = Duration::from_micros(body["gap_us"].as_u64().unwrap_or(1000).max(1));
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": tokens}});
    let end = format!("data: {usage}\n\ndata: [DONE]\n\n");
    let parts = stream::unfold((0, interval(gap)), move |(sent, mut ticks)| {
        let end = end.clone();
        async move {
            let part = match sent {
                _ if sent < tokens => {
                    ticks.tick().await;
                    Bytes::from_static(EVENT.as_bytes())
                }
                _ if sent == tokens => Bytes::from(end),
                _ => return None,
            };
            Some((Ok::<_, Infallible>(part), (sent + 1, ticks)))
        }
    });
    Body::from_stream(parts).into_response()
}
