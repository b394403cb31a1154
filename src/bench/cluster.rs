//! Clusters on two cores: a node on each, and an etcd and a coordinator wherever
//! there is room.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::process::ServerProcess;
use crate::args::Settings;

/// What the two nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One runs prompts, the other generates.
    Split,
    /// Each does both, for requests of its own.
    Local,
    /// As [`Local`](Self::Local), both on the second core and without compute threads, and the
    /// coordinator alone on the first.
    Front,
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
    child: Child,
    url: String,
    _data: TempDir,
}

const START: Duration = Duration::from_secs(60);

// === impl Layout ===

impl Layout {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Local => "local",
            Self::Front => "front",
        }
    }

    /// Of the two nodes, and of the coordinator if it has one.
    fn cores(self) -> ([usize; 2], Option<usize>) {
        match self {
            Self::Split | Self::Local => ([0, 1], None),
            Self::Front => ([1, 1], Some(0)),
        }
    }

    fn settings(self) -> [&'static str; 2] {
        match self {
            Self::Split => [
                "nodes=[{id='1',roles=['prefill']},{id='2',roles=['decode']},{id='c',roles=['coordinator']}]",
                "coordinator.local_prefill_below_tokens=0",
            ],
            Self::Local | Self::Front => [
                "nodes=[{id='1',roles=['prefill','decode']},{id='2',roles=['prefill','decode']},\
                 {id='c',roles=['coordinator']}]",
                "coordinator.local_prefill_below_tokens=1000000000",
            ],
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts everything and waits until both nodes are ready.
    pub(super) fn start(layout: Layout, model: &str, set: &[String]) -> Result<Self> {
        let etcd = Etcd::start()?;
        let mut all: Vec<String> = layout.settings().map(str::to_owned).into();
        all.extend(["registry.kind=etcd".to_owned(), format!("registry.endpoints=['{}']", etcd.url)]);
        let computes = !set.iter().any(|setting| setting == "engine.backend=mock");
        if layout != Layout::Front && computes {
            all.push("engine.threads=1".to_owned());
        }
        all.extend(set.iter().cloned());
        let settings = Settings { set: all, model: Some(model.to_owned()), ..Settings::default() };
        let (cores, own) = layout.cores();
        let node = |core: usize, id: &str| {
            ServerProcess::start_node(on_core(core)?, &settings, id, "metrics at http://")
        };
        let nodes = vec![node(cores[0], "1")?, node(cores[1], "2")?];
        let program = own.map_or_else(|| Ok(Command::new(std::env::current_exe()?)), on_core)?;
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
        let child = Command::new(std::env::var_os("BATON_ETCD").unwrap_or("etcd".into()))
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd, which nodes in processes of their own need (Debian: etcd-server)")?;
        let etcd = Self { child, url, _data: data };
        let (began, addr) = (Instant::now(), etcd.url.trim_start_matches("http://").to_owned());
        while super::start::get(&addr, "/health").is_err() {
            ensure!(began.elapsed() < START, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// This program, on that core.
fn on_core(core: usize) -> Result<Command> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(std::env::current_exe()?);
    Ok(command)
}

/// On a port that was free just now.
fn free_url() -> Result<String> {
    Ok(format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}
