//! Exposed transfer as a share of time to first token: one prefill node, one
//! decode node, TCP between them, requests through the OpenAI API.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;

use super::{median, shown};
use crate::{args, client::Client, config::ClusterConfig, serve::Cluster, terminal::say};

const TOPOLOGY: &str = include_str!("../../cluster-configs/1p1d.toml");

/// What came out.
pub struct Measured {
    /// Exposed transfer over time to first token of the longest prompts, median.
    pub exposed_share: f64,
}

/// Prints the table.
///
/// # Errors
/// When the cluster does not start or a request fails.
pub async fn run(args: &args::BenchHandoff) -> Result<()> {
    measure(args).await.map(drop)
}

/// Runs each prompt length a few times, every prompt a new one.
///
/// # Errors
/// When the cluster does not start or a request fails.
pub async fn measure(args: &args::BenchHandoff) -> Result<Measured> {
    if let Some(url) = &args.url {
        return ask(url, args).await;
    }
    let mut settings = args.settings.clone();
    if let Some(shape) = &args.shape {
        settings.model = Some(shape.clone());
        settings.set.extend(["engine.backend=cuda".to_owned(), "engine.load=random".to_owned()]);
    }
    let mut config = ClusterConfig::load_over(TOPOLOGY, &settings)?;
    config.frontend.listen.set_port(0);
    tokio::task::block_in_place(|| config.make_model_available())?;
    let cluster = Cluster::start(Arc::new(config)).await?;
    let url = cluster.url().context("no coordinator in this process")?;
    let outcome = ask(url, args).await;
    cluster.shutdown().await;
    outcome
}

async fn ask(url: &str, args: &args::BenchHandoff) -> Result<Measured> {
    let client = Client::new(url, None)?;
    let model = client.model().await?;
    let mut exposed_share = f64::NAN;
    for &size in &args.prompt {
        let [mut first, mut prefill, mut exposed, mut share, mut rate] = [const { Vec::new() }; 5];
        let mut tokens = 0;
        for run in 0..args.runs {
            let words = (0..size).map(|i| format!(" {}", WORDS[(i * 7 + run * 13 + size) % WORDS.len()]));
            let mut prompt: String = words.collect();
            // Each byte is a token of made-up weights; about 30 stand around them.
            if args.shape.is_some() {
                prompt.truncate(size);
            }
            let body = json!({
                "model": model, "messages": [{"role": "user", "content": format!("{size} {run}{prompt}")}], "stream": true,
                "max_tokens": 4, "temperature": 0, "ignore_eos": true, "stream_options": {"include_usage": true},
            });
            let answer = client.chat(&body, |_| {}).await?;
            let bill = |name: &str| answer.usage["baton_bill"][name].as_f64().unwrap_or(f64::NAN);
            tokens = answer.usage["prompt_tokens"].as_u64().unwrap_or(0);
            first.push(answer.first.as_secs_f64() * 1e3);
            prefill.push(bill("prefill_ms"));
            exposed.push(bill("exposed_ms"));
            share.push(100.0 * bill("exposed_ms") / (answer.first.as_secs_f64() * 1e3));
            rate.push(bill("transfer_bytes") / 1e6 / bill("transfer_ms"));
        }
        say(format_args!(
            "{tokens:>5} prompt tokens: TTFT {} ms ({:.1} of prefill), exposed transfer {} ms = {} % of it, {:.2} GB/s while computing",
            shown(&first),
            median(&prefill),
            shown(&exposed),
            shown(&share),
            median(&rate)
        ));
        exposed_share = median(&share) / 100.0;
    }
    Ok(Measured { exposed_share })
}

const WORDS: [&str; 16] = [
    "river", "stone", "light", "paper", "winter", "garden", "music", "window", "train", "bread", "cloud",
    "forest", "letter", "silver", "morning", "harbour",
];
