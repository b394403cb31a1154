//! What the user typed.

use std::path::PathBuf;

use baton_protocol::Role;
use clap::{Args, Parser, Subcommand};

/// Disaggregated prefill/decode LLM serving.
#[derive(Debug, Parser)]
#[command(name = "baton", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The program's modes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Two prefill nodes and a decode node in this process, real requests, the bill of each.
    Demo(Demo),
    /// Serves: without --role or --node, everything in this process.
    Serve(Serve),
    /// Chats with a server in the terminal.
    Chat(Chat),
    /// Measures; the figures of BENCHMARKS.md.
    Bench(Bench),
    /// Models on this machine.
    #[command(subcommand)]
    Model(Model),
}

/// `baton demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Exits after the last answer instead of serving on.
    #[arg(long)]
    pub once: bool,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
}

/// `baton serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Runs one node with these roles (repeat for several).
    #[arg(long = "role", value_name = "ROLE", conflicts_with = "nodes")]
    pub roles: Vec<Role>,
    /// Runs only these nodes of the config file (repeat for several).
    #[arg(long = "node", value_name = "ID")]
    pub nodes: Vec<String>,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
}

/// Where settings come from: file, then --set, then --model.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// A TOML file; see cluster-configs/.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, for example engine.pages=512 (repeat for several).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Model name, .gguf file or directory.
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
}

/// `baton chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// A system message.
    #[arg(long)]
    pub system: Option<String>,
}

/// `baton bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to measure.
    #[command(subcommand)]
    pub what: BenchKind,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchKind {
    /// Prefill and decode rates of the engine alone, beside candle's dense f32 matmul in the same run.
    Engine(BenchEngine),
    /// TCP handoff beside a plain TCP stream in the same run.
    Transfer(BenchTransfer),
    /// Exposed transfer as a share of time to first token, through the API.
    Handoff(BenchHandoff),
    /// Process start to ready.
    Start(BenchStart),
    /// All of the above; fails when a ratio of BENCHMARKS.md is missed.
    Check,
}

/// `baton bench engine`.
#[derive(Debug, Args)]
pub struct BenchEngine {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Runs of each row; the median is shown.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// `baton bench transfer`.
#[derive(Debug, Args)]
pub struct BenchTransfer {
    /// MiB moved in each run.
    #[arg(long, default_value_t = 512)]
    pub mib: usize,
    /// Interleaved pairs; the median ratio is shown.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
}

/// `baton bench handoff`.
#[derive(Debug, Args)]
pub struct BenchHandoff {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Requests of each prompt length.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
}

/// `baton bench start`.
#[derive(Debug, Args)]
pub struct BenchStart {
    /// Starts; the median is shown.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
}

/// `baton model`.
#[derive(Debug, Subcommand)]
pub enum Model {
    /// Makes a model available on this machine.
    Pull {
        /// Its name.
        #[arg(default_value = "smollm2-135m")]
        name: String,
    },
}
