//! What the user typed.
//!
//! - `load`: load on servers, and searches with it

mod load;

use std::path::PathBuf;

use baton_protocol::Role;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::load::{BenchServe, BenchSlo, MannerArgs, Output, Questions};
use crate::config::{Dtype, KvDtype, Weights};

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
    /// Has the calls of a JSONL file answered by a server when it has room, with a bar.
    Batch(Batch),
    /// Measures; the figures of BENCHMARKS.md.
    Bench(Bench),
    /// Looks at this machine: what it has, and what a configuration lacks on it. Fails if something is missing.
    Doctor(Doctor),
    /// Looks at a running cluster and steers it.
    Admin(Admin),
    /// Certificates with which the nodes of a cluster know each other.
    #[command(subcommand)]
    Certs(Certs),
    /// API keys of those who may call.
    #[command(subcommand)]
    Key(Key),
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
    /// A .gguf file, a directory, or a name as `baton model pull` takes it, fetched at first use.
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

/// `baton batch`.
#[derive(Debug, Args)]
pub struct Batch {
    /// Calls, as OpenAI's batches have them: {"custom_id", "method": "POST", "url", "body"} a line.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Answers, a line each; lines without a good one go into OUT.errors.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The server; its key, if it asks for one, is taken from BATON_API_KEY.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
}

/// `baton admin`.
#[derive(Debug, Args)]
pub struct Admin {
    /// The admin API of a coordinator.
    #[arg(long, default_value = "http://127.0.0.1:8001", global = true)]
    pub url: String,
    /// JSON, as the API has it, in place of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to look at or do.
    #[command(subcommand)]
    pub what: AdminKind,
}

/// What an operator can do.
#[derive(Debug, Subcommand)]
pub enum AdminKind {
    /// The cluster live, until q is pressed; where there is no terminal, in a few numbers once.
    Top,
    /// Nodes with roles, health, load and pages.
    Nodes,
    /// Everything about one node.
    Node {
        /// Its name.
        id: String,
    },
    /// A node takes no new work and finishes what it has.
    Drain {
        /// Its name.
        id: String,
        /// Also when it is the last decode node of its model.
        #[arg(long)]
        force: bool,
    },
    /// A node takes work again.
    Undrain {
        /// Its name.
        id: String,
    },
    /// A node gets new work of these roles alone, and finishes what it has of others.
    Role {
        /// Its name.
        id: String,
        /// prefill, decode, or both.
        #[arg(required = true)]
        roles: Vec<Role>,
        /// Also when it is the last node of its model with a role that it loses.
        #[arg(long)]
        force: bool,
    },
    /// Requests in flight.
    Requests,
    /// Ends a request.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Who runs and who waits.
    Queue,
    /// Limits and budgets in force, or changes of them until the coordinator restarts.
    Limits {
        /// For example max_running=64.
        #[arg(value_name = "NAME=VALUE")]
        set: Vec<String>,
    },
    /// What is known of prefix caches.
    PrefixIndex,
    /// Every node forgets what its prefix cache holds, whichever tenant's it is.
    Flush,
    /// What the balancer foretells, and how many nodes of each role are wanted.
    Advice,
}

/// `baton doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
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
    /// Look-ups in the coordinator's index of all prefix caches.
    PrefixIndex(BenchPrefixIndex),
    /// An answer with a budget between tokens among many without.
    Budgets(BenchBudgets),
    /// Nodes whose roles change under load, and the same load without, taking turns.
    Flip(BenchFlip),
    /// More calls than a cluster can answer: what is answered and what is refused.
    Overload(BenchOverload),
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
    /// The process that receives; started by the one that sends.
    #[arg(long, hide = true)]
    pub peer: bool,
}

impl Default for BenchTransfer {
    /// The size of a run in `bench check`.
    fn default() -> Self {
        Self { transport: Vec::new(), block: Vec::new(), at_once: Vec::new(), mib: 256, runs: 5, peer: false }
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
    #[arg(long, default_value_t = 16)]
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

/// `baton certs`.
#[derive(Debug, Subcommand)]
pub enum Certs {
    /// Makes a private authority and the certificates of a cluster, and says how to use them.
    Init(CertsInit),
}

/// `baton certs init`.
#[derive(Debug, Args)]
pub struct CertsInit {
    /// Name of the cluster, as in its configuration.
    #[arg(long, default_value = "baton")]
    pub cluster: String,
    /// A directory for the files; none of them may be there already.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub out: PathBuf,
    /// An address or DNS name under which nodes or etcd are reached, beside loopback (repeat for several).
    #[arg(long = "name", value_name = "ADDRESS|NAME")]
    pub names: Vec<String>,
    /// Roles of the nodes of one process (repeat for several); without, a certificate for each role.
    #[arg(long = "role", value_name = "ROLE[+ROLE]...")]
    pub roles: Vec<String>,
    /// How long certificates are good; the authority is for ten years at least.
    #[arg(long, default_value_t = 365)]
    pub days: u32,
}

/// `baton key`.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Makes a key, shows it once, and adds its digest to the file of keys.
    New(KeyNew),
}

/// `baton key new`.
#[derive(Debug, Args)]
pub struct KeyNew {
    /// Whose key it is: prefix cache and limits are a tenant's.
    #[arg(long, value_name = "NAME")]
    pub tenant: String,
    /// The file that frontend.keys_file names; made if it is not there.
    #[arg(long, value_name = "FILE", default_value = "keys.toml")]
    pub file: PathBuf,
}

/// `baton model`.
#[derive(Debug, Subcommand)]
pub enum Model {
    /// Makes a model available on this machine, or continues where a pull was cut.
    Pull {
        /// A short name, ORG/NAME of the Hugging Face Hub, ORG/NAME@REVISION, ORG/NAME:Q4_K_M or
        /// ORG/NAME/FILE.gguf.
        #[arg(default_value = "smollm2-135m")]
        name: String,
    },
    /// Shows the models on this machine, those that Python pulled too.
    List,
}
