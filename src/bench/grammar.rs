//! What a grammar costs between tokens: as many answers at once under a JSON
//! Schema and without one, taking turns on one server.

use std::sync::Arc;

use anyhow::{Result, ensure};
use baton_lab::measure::{Api, Endpoint, Manner, Spread};
use serde_json::{Map, Value, json};

use super::{load, median, process::ServerProcess, shown};
use crate::{args, terminal::say};

/// Tokens of each prompt and of each answer.
const PROMPT: usize = 64;
const OUTPUT: usize = 96;

/// Prints the table.
///
/// # Errors
/// When the model is not on this machine, the server does not start, or a request fails.
pub fn run(args: &args::BenchGrammar) -> Result<()> {
    let server = ServerProcess::start(&args.settings)?;
    load::runtime()?.block_on(measure(args, &server.url()))
}

async fn measure(args: &args::BenchGrammar, url: &str) -> Result<()> {
    let plain = endpoint(url, None).await?;
    let held = endpoint(url, Some(schema())).await?;
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for endpoint in [&plain, &held] {
        // Threads and compiled grammars are there before.
        gaps(endpoint, args.clients).await?;
    }
    for _ in 0..args.runs.max(1) {
        let pair = (gaps(&plain, args.clients).await?, gaps(&held, args.clients).await?);
        ratios.push(pair.1.p50 / pair.0.p50);
        without.push(pair.0);
        with.push(pair.1);
    }
    say("| answers at once | between tokens, p50 ms | p99 ms |");
    say("|---|---|---|");
    for (name, spreads) in [("without a grammar", &without), ("under a schema", &with)] {
        let (middle, late): (Vec<_>, Vec<_>) = spreads.iter().map(|spread| (spread.p50, spread.p99)).unzip();
        say(format_args!("| {}, {name} | {} | {} |", args.clients, shown(&middle), shown(&late)));
    }
    let all: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.3}")).collect();
    say(format_args!("ratio of medians: {:.3} [{}]", median(&ratios), all.join(", ")));
    Ok(())
}

/// Asks for answers under this schema.
async fn endpoint(url: &str, schema: Option<Value>) -> Result<Arc<Endpoint>> {
    // Such an answer may end where its schema lets it: not before it has no room.
    let held = schema.map(|schema| {
        Map::from_iter([("guided_json".to_owned(), schema), ("ignore_eos".to_owned(), false.into())])
    });
    let fields = held.unwrap_or_default();
    let vocabulary = Some(load::COMMON);
    let manner = Manner { api: Api::Completions, vocabulary, fields, ..Manner::default() };
    Ok(Arc::new(Endpoint::connect(url, manner).await?))
}

/// Objects of several kinds of fields, more than an answer has room for.
fn schema() -> Value {
    let book = json!({
        "type": "object",
        "properties": {
            "title": { "type": "string", "maxLength": 40 },
            "year": { "type": "integer", "minimum": 1400, "maximum": 2100 },
            "kind": { "enum": ["novel", "poems", "essays", "play"] },
            "isbn": { "type": "string", "pattern": "^[0-9]{3}-[0-9]{10}$" },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 12 }, "maxItems": 4 },
            "lent": { "type": "boolean" },
        },
        "required": ["title", "year", "kind", "isbn", "tags", "lent"],
        "additionalProperties": false,
    });
    json!({ "type": "array", "items": book, "minItems": 50 })
}

/// Milliseconds between tokens of so many answers at once.
async fn gaps(endpoint: &Arc<Endpoint>, clients: usize) -> Result<Spread> {
    let run = load::run(endpoint, &load::closed(clients, clients, (PROMPT, OUTPUT))).await?;
    let fault = run.records.iter().find_map(|record| load::fault(record, PROMPT));
    ensure!(fault.is_none(), "a request failed: {}", fault.unwrap_or_default());
    let gaps = run.records.iter().flat_map(|record| record.gaps.iter().map(|&gap| f64::from(gap) * 1e3));
    Ok(Spread::of(gaps))
}
