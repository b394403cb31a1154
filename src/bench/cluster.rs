//! Clusters on two cores: a node on each, and an etcd and a coordinator wherever
//! there is room.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::process::{Owned, ServerProcess};
use crate::args::Settings;

/// What nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Some run prompts, the others generate.
    Split(Ratio),
    /// Two, each for requests of its own.
    Local,
    /// As [`Local`](Self::Local), both on the second core and without compute threads, and the
    /// coordinator alone on the first.
    Front,
}

/// Prefill nodes to decode nodes, on two cores: these are shared in turn by more nodes than two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    prefill: usize,
    decode: usize,
}

/// A cluster that ends with this.
pub(super) struct Cluster {
    // Ended in this order.
    coordinator: ServerProcess,
    nodes: Vec<ServerProcess>,
    _etcd: Etcd,
}

/// An etcd with nothing in it.
struct Etcd {
    _process: Owned,
    url: String,
    _data: TempDir,
}

const START: Duration = Duration::from_secs(60);
/// Nodes of a role.
const MOST: usize = 8;

// === impl Ratio ===

impl Ratio {
    /// A node of each role, a core each.
    pub(super) const ONE_EACH: Self = Self { prefill: 1, decode: 1 };
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| text.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
        let found = text
            .split_once(':')
            .and_then(|(prefill, decode)| Some(Self { prefill: count(prefill)?, decode: count(decode)? }));
        found.ok_or_else(|| format!("{text:?} is not PREFILL:DECODE, each of 1 to {MOST}"))
    }
}

// === impl Layout ===

impl Layout {
    pub(super) fn name(self) -> String {
        match self {
            Self::Split(Ratio::ONE_EACH) => "split".to_owned(),
            Self::Split(Ratio { prefill, decode }) => format!("split {prefill}:{decode}"),
            Self::Local => "local".to_owned(),
            Self::Front => "front".to_owned(),
        }
    }

    /// Roles of each node, as settings have them.
    fn roles(self) -> Vec<&'static str> {
        match self {
            Self::Split(Ratio { prefill, decode }) => {
                [vec!["'prefill'"; prefill], vec!["'decode'"; decode]].concat()
            }
            Self::Local | Self::Front => vec!["'prefill','decode'"; 2],
        }
    }

    /// Where a node runs, by its number.
    fn core(self, node: usize) -> usize {
        if self == Self::Front { 1 } else { node % 2 }
    }

    fn settings(self) -> [String; 2] {
        let nodes = self.roles().into_iter().enumerate();
        let nodes: String =
            nodes.map(|(number, roles)| format!("{{id='{}',roles=[{roles}]}},", number + 1)).collect();
        let below = if matches!(self, Self::Split(_)) { 0 } else { 1_000_000_000 };
        [
            format!("nodes=[{nodes}{{id='c',roles=['coordinator']}}]"),
            format!("coordinator.local_prefill_below_tokens={below}"),
        ]
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts everything and waits until all nodes are ready.
    pub(super) fn start(layout: Layout, model: &str, set: &[String]) -> Result<Self> {
        let etcd = Etcd::start()?;
        let mut all: Vec<String> = layout.settings().into();
        all.extend(["registry.kind=etcd".to_owned(), format!("registry.endpoints=['{}']", etcd.url)]);
        let computes = !set.iter().any(|setting| setting == "engine.backend=mock");
        if layout != Layout::Front && computes {
            all.push("engine.threads=1".to_owned());
        }
        all.extend(set.iter().cloned());
        let settings = Settings { set: all, model: Some(model.to_owned()), ..Settings::default() };
        let node = |number: usize| {
            let (program, id) = (on_core(layout.core(number))?, (number + 1).to_string());
            ServerProcess::start_node(program, &settings, &id, "metrics at http://")
        };
        let nodes = (0..layout.roles().len()).map(node).collect::<Result<Vec<_>>>()?;
        let program = match layout {
            Layout::Front => on_core(0)?,
            _ => Command::new(std::env::current_exe()?),
        };
        let coordinator = ServerProcess::start_node(program, &settings, "c", "ready at http://")?;
        let cluster = Self { coordinator, nodes, _etcd: etcd };
        cluster.wait()?;
        Ok(cluster)
    }

    /// Where it is asked.
    pub(super) fn url(&self) -> String {
        self.coordinator.url()
    }

    /// The process that is asked.
    pub(super) fn coordinator(&self) -> &ServerProcess {
        &self.coordinator
    }

    /// Where its nodes are called.
    pub(super) fn controls(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(ServerProcess::control)
    }

    /// Where its nodes tell how they are.
    pub(super) fn metrics(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{}/metrics", node.url())).collect()
    }

    fn wait(&self) -> Result<()> {
        let (began, ready) = (Instant::now(), format!("\"ready_nodes\":{}", self.nodes.len()));
        loop {
            let said = super::start::get(self.coordinator.addr(), "/ready")?;
            if said.contains(&ready) {
                return Ok(());
            }
            ensure!(began.elapsed() < START, "the nodes are not ready after a minute: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

// === impl Etcd ===

impl Etcd {
    fn start() -> Result<Self> {
        let data = tempfile::tempdir()?;
        let [url, peer] = [free_url()?, free_url()?];
        let mut command = Command::new(std::env::var_os("BATON_ETCD").unwrap_or("etcd".into()));
        command
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Owned::start(&mut command)
            .context("etcd, which nodes in processes of their own need (Debian: etcd-server)")?;
        let etcd = Self { _process: process, url, _data: data };
        let (began, addr) = (Instant::now(), etcd.url.trim_start_matches("http://").to_owned());
        while super::start::get(&addr, "/health").is_err() {
            ensure!(began.elapsed() < START, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }
}

/// This program, on that core.
pub(super) fn on_core(core: usize) -> Result<Command> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(std::env::current_exe()?);
    Ok(command)
}

/// On a port that was free just now.
fn free_url() -> Result<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}
