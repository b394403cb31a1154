//! `baton demo`: a split cluster in one process, real requests, the bill of each.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use baton_lab::measure::Spread;
use serde_json::{Value, json};

use crate::{
    args,
    client::{Client, Timed},
    config::ClusterConfig,
    serve::{Cluster, shutdown_signal},
    terminal::{say, show},
};

/// The demo's topology: as `cluster-configs/1p1d.toml`, with a second prefill node.
const TOPOLOGY: &str = r#"
cluster = "demo"

[[nodes]]
id = "prefill-1"
roles = ["prefill"]

[[nodes]]
id = "prefill-2"
roles = ["prefill"]

[[nodes]]
id = "decode-1"
roles = ["decode"]

[[nodes]]
id = "coordinator"
roles = ["coordinator"]

[registry]
kind = "memory"

[transfer]
transport = "tcp"
"#;

const SYSTEM: &str = "You are a helpful assistant who explains things in plain words.";

const QUESTIONS: [&str; 3] = [
    "What is a relay race, and why does the hand-over of the baton matter so much?",
    "Explain in two sentences what a cache is.",
    "Write a short note to a friend about the first snow of the year.",
];

/// Runs the demo; then serves until a signal, unless `--once`.
///
/// # Errors
/// When the model cannot be had, the cluster does not start, or a request fails.
pub async fn run(args: &args::Demo) -> Result<()> {
    let started = Instant::now();
    let mut config = ClusterConfig::load_over(TOPOLOGY, &args.settings)?;
    tokio::task::block_in_place(|| config.make_model_available())?;
    config.use_free_port_if_taken();
    let cluster = Cluster::start(Arc::new(config)).await?;
    let url = cluster.url().unwrap_or_default().to_owned();
    say(format_args!(
        "prefill-1, prefill-2 and decode-1 ready at {url} after {:.2} s; KV goes over TCP",
        started.elapsed().as_secs_f64()
    ));
    let outcome = ask_all(&url).await;
    if outcome.is_ok() && !args.once {
        say(format_args!("\nserving on at {url} · try: baton chat --url {url} · Ctrl-C ends"));
        shutdown_signal().await?;
    }
    cluster.shutdown().await;
    outcome
}

async fn ask_all(url: &str) -> Result<()> {
    let client = Client::new(url, None)?;
    let model = client.model().await?;
    let mut messages = vec![json!({"role": "system", "content": SYSTEM})];
    for question in QUESTIONS {
        say(format_args!("\n> {question}"));
        messages.push(json!({"role": "user", "content": question}));
        let body = json!({
            "model": model, "messages": messages, "stream": true, "max_tokens": 96, "temperature": 0.7, "seed": 7,
            "stream_options": {"include_usage": true},
        });
        let answer = client.chat(&body, show).await?;
        say(format_args!("\n{}", bill(&answer)));
        messages.push(json!({"role": "assistant", "content": answer.text}));
    }
    Ok(())
}

/// One answer's bill in two lines.
fn bill(answer: &Timed) -> String {
    let bill = &answer.usage["baton_bill"];
    let ms = |name: &str| bill[name].as_f64().unwrap_or(0.0);
    let bytes = ms("transfer_bytes");
    let rate = if ms("transfer_ms") > 0.0 { bytes / 1e6 / (ms("transfer_ms") / 1e3) } else { 0.0 };
    let itl = Spread::of(answer.gaps.iter().map(Duration::as_secs_f64));
    let tokens = |name: &str| answer.usage[name].as_u64().unwrap_or(0);
    let prefill_node = match &bill["prefill_node"] {
        Value::String(node) if !node.is_empty() => node.as_str(),
        _ => "decode node itself",
    };
    format!(
        "  bill: queue {:.1} ms · prefill {:.1} ms on {prefill_node} · transfer {} pages, {:.2} MB at {rate:.0} MB/s, \
         exposed {:.1} ms\n        first token {:.1} ms · ITL mean {:.1} ms, p99 {:.1} ms · {} prompt tokens ({} cached), {} out",
        ms("queue_ms"),
        ms("prefill_ms"),
        ms("transfer_pages"),
        bytes / 1e6,
        ms("exposed_ms"),
        answer.first.as_secs_f64() * 1e3,
        itl.mean * 1e3,
        itl.p99 * 1e3,
        tokens("prompt_tokens"),
        answer.usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        tokens("completion_tokens"),
    )
}
