//! What benches are told.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    Settings,
    load::{BenchServe, BenchSlo},
    simulate::BenchSimulated,
};
use crate::config::{Dtype, KvDtype, Weights};

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
    /// KV frames between two processes beside a plain TCP stream and beside copying, in the same run.
    Transfer(BenchTransfer),
    /// Exposed transfer as a share of time to first token, through the API.
    Handoff(BenchHandoff),
    /// Process start to ready.
    Start(BenchStart),
    /// Our server's rate over HTTP beside the rate of its engine alone, taking turns.
    Server(BenchServer),
    /// All of the above; fails when a ratio of BENCHMARKS.md is missed.
    Check,
    /// Servers of the OpenAI API under the same load, taking turns.
    Http(BenchHttp),
    /// Requests at times of their own on any server of the OpenAI API: times, throughput, goodput.
    Serve(Box<BenchServe>),
    /// The highest rate at which requests keep their budgets: of servers, or of a split cluster
    /// beside one that is not.
    Slo(Box<BenchSlo>),
    /// What the client of `bench serve` keeps up with: canned tokens from a server on another core.
    Client(BenchClient),
    /// A cluster on two cores, mock backend, beside what is simulated of the same traffic.
    Simulated(BenchSimulated),
    /// Look-ups in the coordinator's index of all prefix caches.
    PrefixIndex(BenchPrefixIndex),
    /// An answer with a budget between tokens among many without.
    Budgets(BenchBudgets),
    /// Time between tokens under a grammar beside that without one, taking turns.
    Grammar(BenchGrammar),
    /// Nodes whose roles change under load, and the same load without, taking turns.
    Flip(BenchFlip),
    /// More calls than a cluster can answer: what is answered and what is refused.
    Overload(BenchOverload),
    /// What a request costs in coordinator and frontend, on a core of their own.
    Front(BenchFront),
    /// Conversations that share beginnings, under policies of routing, taking turns.
    Routing(BenchRouting),
    /// One row of `bench engine` once, as a bare number: for scripts that compare with other engines.
    Row(BenchRow),
}

/// `baton bench engine`.
#[derive(Debug, Args)]
pub struct BenchEngine {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Measures a model's shape on a card instead: a directory with config.json, or a name in shapes/.
    #[arg(long, value_name = "NAME|PATH", requires = "random_weights")]
    pub shape: Option<PathBuf>,
    /// With weights that mean nothing, made on the card.
    #[arg(long, requires = "shape")]
    pub random_weights: bool,
    /// With the same bits for a sequence in any batch.
    #[arg(long, requires = "shape")]
    pub deterministic: bool,
    /// In what form the card holds weights.
    #[arg(long, value_enum, default_value = "bf16", requires = "shape")]
    pub weights: Weights,
    /// What the card computes in.
    #[arg(long, value_enum, default_value = "bf16", requires = "shape")]
    pub dtype: Dtype,
    /// What cached rows are held in.
    #[arg(long, value_enum, default_value = "auto", requires = "shape")]
    pub kv_dtype: KvDtype,
    /// Number of the card.
    #[arg(long, default_value_t = 0, requires = "shape")]
    pub device: usize,
    /// Requests computed at the same time in the offline row.
    #[arg(long, default_value_t = 256, requires = "shape")]
    pub sequences: usize,
    /// Runs of each row; the median is shown.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// `baton bench transfer`.
#[derive(Debug, Args)]
pub struct BenchTransfer {
    /// Transports, by name.
    #[arg(long, value_delimiter = ',', default_value = "tcp,shm")]
    pub transport: Vec<String>,
    /// Bytes of a block: powers of two, a row (4 KiB) to 64 MiB.
    #[arg(long, value_delimiter = ',', default_value = "16384,65536,262144,1048576,4194304,16777216")]
    pub block: Vec<usize>,
    /// Blocks under way together.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    pub at_once: Vec<usize>,
    /// MiB moved in each run, at least two rounds.
    #[arg(long, default_value_t = 256)]
    pub mib: usize,
    /// Interleaved pairs; the median ratio is shown.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Pages lie on these cards, the sender's and the receiver's (which may be the same), beside copying
    /// from one to the other. Needs feature cuda; transports cuda_ipc and nccl need it.
    #[arg(long, value_delimiter = ',', value_name = "FROM,TO")]
    pub cards: Vec<usize>,
    /// The process that receives; started by the one that sends.
    #[arg(long, hide = true)]
    pub peer: bool,
}

impl Default for BenchTransfer {
    /// The size of a run in `bench check`.
    fn default() -> Self {
        Self {
            transport: Vec::new(),
            block: Vec::new(),
            at_once: Vec::new(),
            mib: 256,
            runs: 5,
            cards: Vec::new(),
            peer: false,
        }
    }
}

/// `baton bench handoff`.
#[derive(Debug, Default, Args)]
pub struct BenchHandoff {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// On a card, with a model's shape: a directory with config.json, or a name in shapes/.
    #[arg(long, value_name = "NAME|PATH", requires = "random_weights", conflicts_with = "model")]
    pub shape: Option<String>,
    /// With weights that mean nothing, made on the card.
    #[arg(long, requires = "shape")]
    pub random_weights: bool,
    /// Asks the cluster at this base URL instead of one that it starts.
    #[arg(long)]
    pub url: Option<String>,
    /// Lengths of prompts, in words or, where a shape stands for a model, in bytes: about as many tokens.
    #[arg(long, value_delimiter = ',', default_value = "128,512,1600")]
    pub prompt: Vec<usize>,
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

/// `baton bench http`.
#[derive(Debug, Args)]
pub struct BenchHttp {
    /// A server (repeat for several; ratios are of the first over each).
    #[arg(long = "url", value_name = "[NAME=]URL", required = true)]
    pub urls: Vec<String>,
    /// Clients at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub concurrency: Vec<usize>,
    /// Requests of each client in a run.
    #[arg(long, default_value_t = 2)]
    pub requests: usize,
    /// Requests of a run, at least.
    #[arg(long, default_value_t = 6)]
    pub least: usize,
    /// Runs of each server, interleaved.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Tokens of each prompt, at random.
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64)]
    pub output_tokens: usize,
    /// A line of JSON for each server and number of clients, in place of a table.
    #[arg(long)]
    pub json: bool,
}

/// `baton bench prefix-index`.
#[derive(Debug, Args)]
pub struct BenchPrefixIndex {
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    pub nodes: usize,
    /// Different pages that they hold.
    #[arg(long, default_value_t = 10_000_000)]
    pub pages: usize,
    /// Pages of a prompt.
    #[arg(long, default_value_t = 512)]
    pub chain: usize,
    /// Look-ups measured.
    #[arg(long, default_value_t = 100_000)]
    pub lookups: usize,
}

/// `baton bench budgets`.
#[derive(Debug, Args)]
pub struct BenchBudgets {
    /// Answers without a budget.
    #[arg(long, default_value_t = 24)]
    pub others: usize,
    /// The budget of the one that has it.
    #[arg(long, default_value_t = 25)]
    pub itl_ms: u64,
    /// Runs with it and without, taking turns.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// `baton bench flip`.
#[derive(Debug, Args)]
pub struct BenchFlip {
    /// Callers at once, each with one request after the other.
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    /// Milliseconds between two changes of a node's role.
    #[arg(long, default_value_t = 1000)]
    pub every_ms: u64,
    /// Seconds of each run.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Runs with changes and without, taking turns.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// `baton bench client`.
#[derive(Debug, Args)]
pub struct BenchClient {
    /// Tokens a second that the server sends; fails when the first are not read in time.
    #[arg(long, value_delimiter = ',', default_value = "20000,40000,80000")]
    pub rate: Vec<f64>,
    /// Answers at once.
    #[arg(long, default_value_t = 200)]
    pub streams: usize,
    /// Seconds of each rate.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// The process that sends; started by the one that reads.
    #[arg(long, hide = true)]
    pub server: bool,
}

/// `baton bench front`.
#[derive(Debug, Args)]
pub struct BenchFront {
    /// The model whose tokenizer and template are used.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Requests of a run.
    #[arg(long, default_value_t = 5000)]
    pub requests: usize,
    /// Runs.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// One setting of the cluster (repeat for several).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `baton bench overload`.
#[derive(Debug, Args)]
pub struct BenchOverload {
    /// Calls, in multiples of what the cluster answers.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,1")]
    pub load: Vec<f64>,
    /// Seconds of each.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// When calls come.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One setting of the cluster more (repeat for several).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `baton bench routing`.
#[derive(Debug, Args)]
pub struct BenchRouting {
    /// What is otherwise than said: another backend, fewer nodes.
    #[command(flatten)]
    pub settings: Settings,
    /// Policies; ratios are to the first.
    #[arg(long, value_delimiter = ',', default_value = "round_robin,least_loaded,prefix_aware,predicted")]
    pub policy: Vec<String>,
    /// Conversations.
    #[arg(long, default_value_t = 24)]
    pub conversations: usize,
    /// Turns of each.
    #[arg(long, default_value_t = 10)]
    pub turns: usize,
    /// Conversations at a time.
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// In which the first token of a turn should come.
    #[arg(long, default_value_t = 300)]
    pub ttft_ms: u64,
    /// Of the conversations.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Runs of each policy, interleaved.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// `baton bench server`.
#[derive(Debug, Args)]
pub struct BenchServer {
    /// Where settings come from, for the server and for the engine.
    #[command(flatten)]
    pub settings: Settings,
    /// Clients at a time, or sequences of a batch.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub concurrency: Vec<usize>,
    /// Interleaved pairs; the median ratio is shown.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
}

/// `baton bench grammar`.
#[derive(Debug, Args)]
pub struct BenchGrammar {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Answers at once.
    #[arg(long, default_value_t = 32)]
    pub clients: usize,
    /// Interleaved pairs; the median ratio is shown.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
}

/// `baton bench row`.
#[derive(Debug, Args)]
pub struct BenchRow {
    /// What is measured.
    pub kind: RowKind,
    /// Tokens of the prompt, or streams after 128 tokens each.
    pub size: usize,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
}

/// What a row of `bench engine` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowKind {
    /// Tokens of one prompt.
    Prefill,
    /// Tokens after a prompt.
    Decode,
}
