//! Clusters that are made up, and plans of them.

use std::path::PathBuf;

use baton_lab::simulate::{ClusterShape, MachineShape};
use clap::Args;

use super::{Output, Questions};

/// `baton simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// A TOML file with cluster, machine, coordinator, workload and events; options hold over it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "input", "output", "turns", "pause_ms", "prefix", "ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"])]
    pub scenario: Option<PathBuf>,
    /// Prefill nodes.
    #[arg(long)]
    pub prefill: Option<usize>,
    /// Decode nodes.
    #[arg(long)]
    pub decode: Option<usize>,
    /// Nodes that do both for requests of their own.
    #[arg(long)]
    pub local: Option<usize>,
    /// What nodes are.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// coordinator.policy.
    #[arg(long)]
    pub policy: Option<String>,
    /// What is asked.
    #[command(flatten)]
    pub questions: Questions,
    /// Simulates the traffic of the runs that `bench serve --json` wrote, and compares; fails
    /// where an error is larger than what is borne.
    #[arg(long, value_name = "RUN.json")]
    pub against: Option<PathBuf>,
    /// Runs the same with a 64th, a 16th and a fourth of nodes and traffic too, and shows what each took.
    #[arg(long, conflicts_with = "against")]
    pub growth: bool,
    /// What becomes of the figures.
    #[command(flatten)]
    pub written: Output,
    /// Writes a page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// What nodes are: a card with a model, or figures of a measured run.
#[derive(Clone, Debug, Default, Args)]
pub struct MachineArgs {
    /// A card: h100, h200, a100, l40s or b200.
    #[arg(long)]
    pub gpu: Option<String>,
    /// A model's shape: a directory with config.json, or a name in shapes/.
    #[arg(long, value_name = "NAME|PATH")]
    pub shape: Option<String>,
    /// Takes what steps cost from runs of a split cluster that `bench serve --json` wrote.
    #[arg(long, value_name = "RUN.json")]
    pub fit: Option<PathBuf>,
    /// What a node's link carries either way, in Gbit/s.
    #[arg(long, value_name = "GBIT")]
    pub link: Option<f64>,
}

/// `baton plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// What nodes are.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Requests a second.
    #[arg(long)]
    pub rate: f64,
    /// Tokens of a prompt.
    #[arg(long)]
    pub prompt: usize,
    /// Of these, those that a cache holds.
    #[arg(long, default_value_t = 0)]
    pub cached: usize,
    /// Tokens of an answer.
    #[arg(long)]
    pub output: usize,
    /// Budget to the first token.
    #[arg(long)]
    pub ttft_ms: f64,
    /// Budget between tokens.
    #[arg(long)]
    pub itl_ms: f64,
    /// Share of requests that are to keep both.
    #[arg(long, default_value_t = 0.9)]
    pub target: f64,
    /// Cards of a node to plan with; the fewest in all are picked. Baton's nodes have one: what a
    /// plan says of more, no cluster of it runs yet.
    #[arg(long, value_name = "CARDS", value_delimiter = ',', default_value = "1")]
    pub tensor_parallel: Vec<usize>,
    /// Simulates so many requests on the pick.
    #[arg(long, value_name = "REQUESTS", num_args = 0..=1, default_missing_value = "2000")]
    pub verify: Option<usize>,
    /// JSON in place of text.
    #[arg(long)]
    pub json: bool,
}

/// `baton bench simulated`.
#[derive(Debug, Args)]
pub struct BenchSimulated {
    /// Requests a second.
    #[arg(long, default_value_t = 12.0)]
    pub rate: f64,
    /// Requests of a run.
    #[arg(long, default_value_t = 240)]
    pub requests: usize,
    /// Runs of the same traffic, each on a cluster of its own, after one of other traffic that is fitted.
    #[arg(long, default_value_t = 2)]
    pub runs: usize,
    /// Of the traffic.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One setting of the cluster more (repeat for several).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

// === impl MachineArgs ===

impl MachineArgs {
    /// That machine, with these options in place of its own.
    pub fn over(&self, mut shape: MachineShape) -> MachineShape {
        shape.gpu = self.gpu.clone().or(shape.gpu);
        shape.shape = self.shape.clone().or(shape.shape);
        if let Some(gbit) = self.link {
            shape.link.bytes_per_second = gbit * 1e9 / 8.0;
        }
        shape
    }
}

// === impl Simulate ===

impl Simulate {
    /// That cluster, with the numbers of the options in place of its own.
    pub fn cluster(&self, shape: ClusterShape) -> ClusterShape {
        if self.local.is_some() && self.prefill.is_none() && self.decode.is_none() {
            return ClusterShape { prefill: 0, decode: 0, local: self.local.unwrap_or(0) };
        }
        ClusterShape {
            prefill: self.prefill.unwrap_or(shape.prefill),
            decode: self.decode.unwrap_or(shape.decode),
            local: self.local.unwrap_or(shape.local),
        }
    }
}
