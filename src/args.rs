//! What the user typed.
//!
//! - `bench`: benches
//! - `load`: load on servers, and searches with it
//! - `simulate`: clusters that are made up, and plans of them

mod bench;
mod load;
mod simulate;

use std::path::{Path, PathBuf};

use baton_protocol::Role;
use baton_trust::Rank;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::{
    bench::{
        Bench, BenchBudgets, BenchClient, BenchEngine, BenchFlip, BenchFront, BenchGrammar, BenchHandoff,
        BenchHttp, BenchKind, BenchOverload, BenchPrefixIndex, BenchRouting, BenchRow, BenchServer,
        BenchStart, BenchTransfer, RowKind,
    },
    load::{BenchServe, BenchSlo, MannerArgs, Output, Questions},
    simulate::{BenchSimulated, MachineArgs, Plan, Simulate},
};
use crate::telemetry::LogFormat;

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
    /// Simulates a cluster: the coordinator's own code over nodes that are figures.
    Simulate(Box<Simulate>),
    /// How many nodes of which role a load needs, whether to split at all, and what breaks first.
    Plan(Box<Plan>),
    /// Looks at this machine: what it has, and what a configuration lacks on it. Fails if something is missing.
    Doctor(Doctor),
    /// Looks at a running cluster and steers it. Where operators need keys, BATON_ADMIN_KEY has one.
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
    /// Asks a process whether it is well, for whoever restarts those that are not. Fails if not.
    Probe(Probe),
    /// Prints what a shell needs to complete this program's words.
    Completions {
        /// Whose.
        shell: Shell,
    },
    /// Writes the man pages of all commands.
    Man {
        /// Where to; made if it is not there.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
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
    /// Says whether the settings are good, and starts nothing; what they name on this machine is
    /// `baton doctor`'s to look at.
    #[arg(long)]
    pub check: bool,
    /// The form of the log on stderr.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
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

/// Whose certificate a server of https shows.
#[derive(Clone, Debug, Default, Args)]
pub struct Authority {
    /// PEM file of the authority that has signed the certificate of an https server, for example
    /// the ca.crt of `baton certs init`; without, those count that browsers know.
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

/// `baton chat`. A key, if the server asks for one, is taken from `BATON_API_KEY`.
#[derive(Debug, Args)]
pub struct Chat {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Whose certificate it shows.
    #[command(flatten)]
    pub authority: Authority,
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
    /// Whose certificate it shows.
    #[command(flatten)]
    pub authority: Authority,
}

/// `baton admin`. Where operators need keys, `BATON_ADMIN_KEY` has one.
#[derive(Debug, Args)]
pub struct Admin {
    /// The admin API of a coordinator.
    #[arg(long, default_value = "http://127.0.0.1:8001", global = true)]
    pub url: String,
    /// Whose certificate it shows, where a proxy puts it inside TLS.
    #[command(flatten)]
    pub authority: Authority,
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
    /// How KV comes from each prefill node to each decode node, and whether fast enough.
    Topology,
    /// KV on its way from prefill nodes to decode nodes.
    Handoffs,
    /// What has happened of late, the newest first.
    Incidents,
    /// What operators did of late, the newest first; or whether files of acts are whole.
    Audit {
        /// Files that admin.audit_file named, the oldest first: no coordinator is asked.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The hash that the last line must have, as the log of the coordinator has it.
        #[arg(long, value_name = "HASH", requires = "files")]
        last: Option<String>,
    },
}

/// `baton doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The API of the cluster, under a name that its certificate is for; without, frontend.listen.
    #[arg(long)]
    pub url: Option<String>,
    /// Whose certificate it shows; without, the authority of tls.ca counts, if there is one.
    #[command(flatten)]
    pub authority: Authority,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
}

/// `baton probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// What to ask: /health of any process, or /ready of one with the API.
    #[arg(default_value = "http://127.0.0.1:8000/health")]
    pub url: String,
    /// Whose certificate it shows.
    #[command(flatten)]
    pub authority: Authority,
    /// How long to wait for the answer.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
}

/// `baton certs`.
#[derive(Debug, Subcommand)]
pub enum Certs {
    /// Makes a private authority and the certificates of a cluster, and says how to use them.
    Init(CertsInit),
    /// Makes new certificates and keys for all that an authority has signed in a directory.
    Renew(CertsRenew),
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

/// `baton certs renew`.
#[derive(Debug, Args)]
pub struct CertsRenew {
    /// The directory of the authority's `ca.crt` and `ca.key` and of what it has signed.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub dir: PathBuf,
    /// An address or DNS name beside those that the certificates have (repeat for several).
    #[arg(long = "name", value_name = "ADDRESS|NAME")]
    pub names: Vec<String>,
    /// How long they are good, from now on.
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
    /// Of an operator's key, in the file that admin.keys_file names: viewer, operator or admin, which
    /// is what keys without one are.
    #[arg(long, value_name = "RANK")]
    pub rank: Option<Rank>,
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

// === impl Authority ===

impl Authority {
    /// Its file, if one was named.
    pub fn file(&self) -> Option<&Path> {
        self.ca.as_deref()
    }
}
