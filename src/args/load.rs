//! Load on servers.

use std::path::{Path, PathBuf};

use baton_lab::{
    budgets::Budgets,
    measure::{Api, Manner},
    traffic::{Arrivals, Class, Length, Prefixes, Shape, Trace, TraceFormat, Vocabulary, Workload},
};
use clap::Args;
use serde_json::{Map, Value};

use super::Authority;
use crate::bench::Ratio;

/// `baton bench serve`.
#[derive(Debug, Args)]
pub struct BenchServe {
    /// A server, by its base URL (repeat for several, which take turns).
    #[arg(long = "url", value_name = "[NAME=]URL", default_value = "http://127.0.0.1:8000")]
    pub urls: Vec<String>,
    /// Runs of each.
    #[arg(long, default_value_t = 1)]
    pub runs: usize,
    /// Requests sent to each beforehand, one after the other, which count nowhere.
    #[arg(long, default_value_t = 2)]
    pub warm_up: usize,
    /// How requests are put.
    #[command(flatten)]
    pub manner: MannerArgs,
    /// What is asked when.
    #[command(flatten)]
    pub questions: Questions,
    /// What becomes of the figures.
    #[command(flatten)]
    pub output: Output,
}

/// `baton bench slo`.
#[derive(Debug, Args)]
pub struct BenchSlo {
    /// A server to search, by its base URL (repeat for several); without, clusters of our
    /// own, each on the first two cores: one prefill and one decode node, and two nodes that
    /// do both.
    #[arg(long = "url", value_name = "[NAME=]URL", conflicts_with_all = ["own", "set", "ratio", "chunk", "step_ms", "sequences"])]
    pub urls: Vec<String>,
    /// The model of our own clusters.
    #[arg(long, value_name = "NAME|PATH", default_value = "smollm2-135m")]
    pub own: String,
    /// One setting of our own clusters (repeat for several).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prefill nodes to decode nodes of our own split clusters, each searched; more nodes than
    /// two share the two cores in turn.
    #[arg(long, value_name = "PREFILL:DECODE", value_delimiter = ',', default_value = "1:1")]
    pub ratio: Vec<Ratio>,
    /// Tokens of a step to try in our own clusters (engine.scheduler.max_batch_tokens).
    #[arg(long, value_delimiter = ',')]
    pub chunk: Vec<usize>,
    /// Times of a step with prompts and answers to try (engine.scheduler.mixed_step_ms).
    #[arg(long, value_delimiter = ',')]
    pub step_ms: Vec<u64>,
    /// Answers at a time to try (engine.scheduler.max_sequences).
    #[arg(long, value_delimiter = ',')]
    pub sequences: Vec<usize>,
    /// Share of requests that must keep the budgets.
    #[arg(long, default_value_t = 0.9)]
    pub target: f64,
    /// The search ends when the rate that holds and the one that does not are closer than this.
    #[arg(long, default_value_t = 0.1)]
    pub precision: f64,
    /// Rates of a search are so many times as high, or as low, until one holds and one does not.
    #[arg(long, default_value_t = 2.0)]
    pub factor: f64,
    /// Rates of a search, at most.
    #[arg(long, default_value_t = 12)]
    pub trials: usize,
    /// Measurements of each rate, of other questions each; the middle counts.
    #[arg(long, default_value_t = 2)]
    pub repeats: usize,
    /// Measurements of each side where all of them hold, taking turns.
    #[arg(long, default_value_t = 3)]
    pub pairs: usize,
    /// How requests are put.
    #[command(flatten)]
    pub manner: MannerArgs,
    /// What is asked: --rate is the first that is tried, --seconds how long each takes.
    #[command(flatten)]
    pub questions: Questions,
    /// Writes everything.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Measures nothing, but shows files that --json wrote (repeat for several).
    #[arg(long, value_name = "FILE")]
    pub compare: Vec<PathBuf>,
}

/// How requests are put. A key is taken from BATON_API_KEY.
#[derive(Clone, Debug, Default, Args)]
pub struct MannerArgs {
    /// Asks /v1/completions instead of /v1/chat/completions.
    #[arg(long)]
    pub completions: bool,
    /// Asks for answers in one piece.
    #[arg(long)]
    pub no_stream: bool,
    /// The model; without, the first that a server lists.
    #[arg(long = "model", value_name = "NAME")]
    pub served: Option<String>,
    /// Sends completions token ids from LOW on, below HIGH, instead of words.
    #[arg(long, value_name = "LOW:HIGH", requires = "completions", value_parser = ids)]
    pub ids: Option<Vocabulary>,
    /// Tells the server of budgets, in headers.
    #[arg(long)]
    pub tell_budgets: bool,
    /// Uses connections again, where the server leaves them open.
    #[arg(long)]
    pub keep_connections: bool,
    /// Whose certificates servers show.
    #[command(flatten)]
    pub authority: Authority,
    /// One field of every body more, as JSON (repeat for several).
    #[arg(long = "field", value_name = "NAME=JSON", value_parser = field)]
    pub fields: Vec<(String, Value)>,
}

/// What is asked when.
#[derive(Clone, Debug, Args)]
pub struct Questions {
    /// A TOML file with all of it, and with several classes; see `lab::traffic::Workload`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trace", "input", "output", "turns", "pause_ms", "prefix", "ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"])]
    pub workload: Option<PathBuf>,
    /// Sessions a second, at random times (Poisson).
    #[arg(long, conflicts_with_all = ["replay", "clients"])]
    pub rate: Option<f64>,
    /// Times between sessions are gamma with this shape: below 1 they come in bursts.
    #[arg(long, requires = "rate", conflicts_with = "constant")]
    pub burstiness: Option<f64>,
    /// Evenly spaced.
    #[arg(long, requires = "rate")]
    pub constant: bool,
    /// At the trace's times, so many times as fast.
    #[arg(long, value_name = "SPEED", conflicts_with = "clients")]
    pub replay: Option<f64>,
    /// A closed loop: so many clients, each asking again when it has its answer.
    #[arg(long)]
    pub clients: Option<usize>,
    /// Requests under way at once, at most; those beyond wait, and their wait counts.
    #[arg(long)]
    pub max_in_flight: Option<usize>,
    /// Sessions; of a trace, at most.
    #[arg(long)]
    pub sessions: Option<usize>,
    /// After which no session begins.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Same seed, same questions at the same times.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Sessions from a file: ShareGPT's JSON or Mooncake's JSON lines, told by the name's end.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Tokens said in each turn: a number, or LEAST:MOST.
    #[arg(long, default_value = "128")]
    pub input: Length,
    /// Tokens of each answer.
    #[arg(long, default_value = "64")]
    pub output: Length,
    /// Turns of a session, each with all that was said and answered before.
    #[arg(long, default_value = "1")]
    pub turns: Length,
    /// From an answer to the next turn, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Sessions begin with one of COUNT texts of TOKENS tokens.
    #[arg(long, value_name = "TOKENS:COUNT", value_parser = prefixes)]
    pub prefix: Option<Prefixes>,
    /// Budget to the first token.
    #[arg(long)]
    pub ttft_ms: Option<f64>,
    /// Budget between tokens: of a request's gaps, the 99th percentile.
    #[arg(long)]
    pub itl_ms: Option<f64>,
    /// Budget of a request's mean time between tokens.
    #[arg(long)]
    pub tpot_ms: Option<f64>,
    /// Budget to the end.
    #[arg(long)]
    pub e2e_ms: Option<f64>,
}

/// What becomes of figures beside the tables on the terminal.
#[derive(Clone, Debug, Default, Args)]
pub struct Output {
    /// The table of engine comparisons alone: throughput, latency, memory efficiency, first token.
    #[arg(long)]
    pub engines: bool,
    /// Writes everything, each request's times too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a row for each request.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Writes the tables.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

// === impl MannerArgs ===

impl MannerArgs {
    /// As the lab has it.
    pub fn manner(&self) -> Manner {
        Manner {
            api: if self.completions { Api::Completions } else { Api::Chat },
            streams: !self.no_stream,
            model: self.served.clone(),
            key: std::env::var("BATON_API_KEY").ok(),
            vocabulary: self.ids,
            tells_budgets: self.tell_budgets,
            keeps_connections: self.keep_connections,
            authority: self.authority.file().map(Path::to_owned),
            metrics: Vec::new(),
            fields: self.fields.iter().cloned().collect::<Map<_, _>>(),
        }
    }
}

// === impl Questions ===

impl Questions {
    /// The workload of the file, or of the options; options on times and numbers hold over the file's.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn workload(&self) -> anyhow::Result<Workload> {
        let workload = match &self.workload {
            Some(path) => toml::from_str(&crate::config::read(path)?)?,
            None => Workload { classes: vec![self.class()], ..Workload::default() },
        };
        Ok(self.over(workload))
    }

    /// That workload, with the times and numbers of the options in place of its own.
    pub fn over(&self, mut workload: Workload) -> Workload {
        let trace = |path: &PathBuf| Trace { path: path.clone(), format: TraceFormat::of(path) };
        workload.trace = self.trace.as_ref().map(trace).or(workload.trace);
        workload.arrivals = self.arrivals().unwrap_or(workload.arrivals);
        workload.seed = self.seed.unwrap_or(workload.seed);
        workload.sessions = self.sessions.unwrap_or(workload.sessions);
        workload.seconds = self.seconds.or(workload.seconds);
        workload.max_in_flight = self.max_in_flight.or(workload.max_in_flight);
        workload
    }

    fn class(&self) -> Class {
        let shape = Shape {
            input: self.input,
            output: self.output,
            turns: self.turns,
            pause_ms: self.pause_ms,
            prefixes: self.prefix.unwrap_or_default(),
        };
        let Self { ttft_ms, itl_ms, tpot_ms, e2e_ms, .. } = *self;
        Class { shape, budgets: Budgets { ttft_ms, itl_ms, tpot_ms, e2e_ms }, ..Class::default() }
    }

    fn arrivals(&self) -> Option<Arrivals> {
        match *self {
            Self { rate: Some(rate), constant: true, .. } => Some(Arrivals::Constant { rate }),
            Self { rate: Some(rate), burstiness: Some(burstiness), .. } => {
                Some(Arrivals::Gamma { rate, burstiness })
            }
            Self { rate: Some(rate), .. } => Some(Arrivals::Poisson { rate }),
            Self { replay: Some(speed), .. } => Some(Arrivals::Replay { speed }),
            Self { clients: Some(clients), .. } => Some(Arrivals::Closed { clients }),
            _ => None,
        }
    }
}

/// Two numbers with a colon between them.
fn pair<T: std::str::FromStr>(text: &str) -> Option<(T, T)> {
    let (first, second) = text.split_once(':')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

fn ids(text: &str) -> Result<Vocabulary, String> {
    let range = pair(text).filter(|(low, high)| low < high);
    range.map(|(low, high)| Vocabulary::Ids { low, high }).ok_or_else(|| format!("{text:?} is not LOW:HIGH"))
}

fn prefixes(text: &str) -> Result<Prefixes, String> {
    let found = pair(text).filter(|(_, count)| *count > 0);
    found
        .map(|(tokens, count)| Prefixes { tokens, count })
        .ok_or_else(|| format!("{text:?} is not TOKENS:COUNT"))
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=JSON"))?;
    let value = serde_json::from_str(value).map_err(|error| format!("{value}: {error}"))?;
    Ok((name.to_owned(), value))
}
