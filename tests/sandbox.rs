//! Clusters of real processes for tests: `baton serve`, one process a node,
//! and etcd, all on free loopback ports. Everything dies with its value.

mod answer;
mod etcd;
mod network;
mod operator;
mod process;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use baton_protocol::{PageCounts, Role, wire};
use baton_trust::{TlsConfig, Trust};
use tempfile::TempDir;

use self::network::command;
pub use self::{
    answer::{Outcome, StreamedAnswer, complete, complete_until, mock_expected},
    etcd::Etcd,
    network::{Network, Within, enter},
    operator::Operator,
    process::{Held, Process},
};

/// How long anything in a test may take before it counts as hung. Generous:
/// reaching it means failure, not slowness.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster of processes.
pub struct Cluster {
    /// By node id.
    pub nodes: BTreeMap<String, Process>,
    /// Absent for a registry in memory.
    pub etcd: Option<Etcd>,
    /// Base URL of the OpenAI API.
    pub url: String,
    /// One client for all requests.
    pub http: reqwest::Client,
    /// What nodes are started as.
    pub program: String,
    /// Machines of its own, if it has any.
    pub network: Option<Network>,
    /// The tests' own certificate, if nodes have them.
    trust: Trust,
    config: PathBuf,
    _dir: TempDir,
}

/// Which nodes, in words of a config file.
pub struct Plan {
    /// TOML without `[[nodes]]` and `[registry]`.
    pub settings: String,
    /// Number of prefill nodes and of decode nodes.
    pub prefill: usize,
    /// See `prefill`.
    pub decode: usize,
}

// === impl Cluster ===

impl Cluster {
    /// `BATON_TEST_SET` has settings for every process, separated by spaces: the same tests on
    /// another backend. `BATON_TEST_CARDS=0,1` puts prefill nodes on one card, decode nodes on another.
    fn more_args(node: &str) -> Vec<String> {
        let set = std::env::var("BATON_TEST_SET").unwrap_or_default();
        let cards = std::env::var("BATON_TEST_CARDS").unwrap_or_default();
        let card =
            cards.split(',').nth(usize::from(node.starts_with("decode"))).filter(|card| !card.is_empty());
        let device = card.map(|card| format!("engine.device={card}"));
        let settings = set.split_whitespace().map(str::to_owned).chain(device);
        settings.flat_map(|setting| ["--set".to_owned(), setting]).collect()
    }

    /// Starts every node as its own process over a fresh etcd and waits until requests are served.
    pub async fn start(plan: &Plan) -> Self {
        let dir = TempDir::new().unwrap();
        let etcd = Etcd::start(dir.path());
        Self::start_over(plan, dir, (etcd, Trust::none(), None)).await
    }

    /// As [`start`](Self::start), every worker and each of these members of etcd on a machine of its
    /// own, in a network of this number; the settings are those of a cluster of this name. For tests
    /// whose network is [their own](Within::Own).
    pub async fn start_apart(plan: &Plan, (cluster, number): (&str, u8), members: &[&str]) -> Self {
        let (dir, mut network) = (TempDir::new().unwrap(), Network::new(number));
        plan.workers()
            .iter()
            .map(String::as_str)
            .chain(members.iter().copied())
            .for_each(|name| network.add(name));
        let certs = dir.path().join("certs");
        let mut init = Command::new(env!("CARGO_BIN_EXE_baton"));
        init.args(["certs", "init", "--cluster", cluster, "--out"]).arg(&certs);
        init.args(network.names().flat_map(|name| ["--name".to_owned(), network.address(name).to_string()]));
        network.set_named(true);
        let made = init.args(["--name", &network.name()]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let [ca, cert, key] = ["ca.crt", "{roles}.crt", "{roles}.key"].map(|name| certs.join(name));
        let files = [("ca", &ca), ("cert", &cert), ("key", &key)];
        let tls: String = files.map(|(name, file)| format!("{name} = \"{}\"\n", file.display())).concat();
        let plan = Plan { settings: format!("{}\n[tls]\n{tls}", plan.settings), ..*plan };
        let own = TlsConfig { ca, cert, key, name: None };
        let trust = Trust::load(&own, cluster, &[Role::Coordinator].into()).unwrap();
        let etcd = Etcd::start_apart(dir.path(), &certs, &network);
        etcd.remember();
        Self::start_over(&plan, dir, (etcd, trust, Some(network))).await
    }

    /// As [`start`](Self::start), over an etcd that talks to holders of certificates in `certs` alone.
    pub async fn start_certified(plan: &Plan, certs: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let etcd = Etcd::start_certified(dir.path(), certs);
        Self::start_over(plan, dir, (etcd, Trust::none(), None)).await
    }

    /// As [`start`](Self::start), of another build of the program.
    pub async fn start_as(plan: &Plan, program: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let etcd = Etcd::start(dir.path());
        Self::start_of(plan, dir, (etcd, Trust::none(), None), program).await
    }

    async fn start_over(plan: &Plan, dir: TempDir, over: (Etcd, Trust, Option<Network>)) -> Self {
        Self::start_of(plan, dir, over, env!("CARGO_BIN_EXE_baton")).await
    }

    async fn start_of(
        plan: &Plan,
        dir: TempDir,
        (etcd, trust, network): (Etcd, Trust, Option<Network>),
        program: &str,
    ) -> Self {
        let config = dir.path().join("cluster.toml");
        fs::write(&config, plan.to_toml(network.as_ref()) + &etcd.to_toml()).unwrap();
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            etcd: Some(etcd),
            url: String::new(),
            http: baton::client::http(None).unwrap(),
            program: program.to_owned(),
            network,
            trust,
            config,
            _dir: dir,
        };
        for node in plan.workers() {
            cluster.start_node(&node);
        }
        cluster.start_node("coordinator");
        cluster.url = cluster.url_of("coordinator");
        cluster.wait_for_members(plan.prefill + plan.decode).await;
        cluster
    }

    /// Everything in one process, as `baton serve` does without roles, with a file of `settings`.
    pub async fn start_embedded(settings: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("cluster.toml");
        fs::write(&config, settings).unwrap();
        let more = Self::more_args("local");
        let mut args = vec!["serve", "--config", config.to_str().unwrap()];
        args.extend(more.iter().map(String::as_str));
        let process = Process::start("local", env!("CARGO_BIN_EXE_baton"), &args);
        let line = process.wait_for("ready at ", PATIENCE);
        Self {
            nodes: BTreeMap::from([("local".to_owned(), process)]),
            etcd: None,
            url: line.split("ready at ").nth(1).unwrap().trim().to_owned(),
            http: baton::client::http(None).unwrap(),
            program: env!("CARGO_BIN_EXE_baton").to_owned(),
            network: None,
            trust: Trust::none(),
            config,
            _dir: dir,
        }
    }

    /// Starts (or starts again) one node of the plan.
    pub fn start_node(&mut self, node: &str) {
        self.start_node_with(node, &[]);
    }

    /// The same with settings of its own.
    pub fn start_node_with(&mut self, node: &str, set: &[&str]) {
        let config = self.config.to_str().unwrap();
        let more = Self::more_args(node);
        let mut args = vec!["serve", "--config", config, "--node", node];
        args.extend(more.iter().map(String::as_str));
        args.extend(set.iter().flat_map(|set| ["--set", set]));
        let at = self.network.as_ref().map_or_else(Vec::new, |network| network.node_at(node));
        let process = Process::spawn(node, command(&at, &self.program).args(&args));
        process.wait_for(&format!("node {node} "), PATIENCE);
        self.nodes.insert(node.to_owned(), process);
    }

    /// Where a coordinator serves the API.
    pub fn url_of(&self, node: &str) -> String {
        let line = self.nodes[node].wait_for("ready at ", PATIENCE);
        line.split("ready at ").nth(1).unwrap().trim().to_owned()
    }

    /// Sends SIGKILL to a node and forgets it.
    pub fn kill(&mut self, node: &str) {
        drop(self.nodes.remove(node).unwrap_or_else(|| panic!("no node {node}")));
    }

    /// Waits until the coordinator sees `wanted` ready worker nodes.
    pub async fn wait_for_members(&self, wanted: usize) {
        eventually("members", || async {
            let answer = self.http.get(format!("{}/ready", self.url)).send().await.ok()?;
            let body: serde_json::Value = answer.json().await.ok()?;
            (body["ready_nodes"].as_u64() == Some(wanted as u64)).then_some(())
        })
        .await;
    }

    /// Page counts of one worker node, asked directly.
    pub async fn pages(&self, node: &str) -> Option<PageCounts> {
        let addr = self.nodes.get(node)?.control_addr()?;
        let roles = node.split('-').next()?.parse::<Role>().into_iter().collect();
        let channel = self.trust.callee(&addr, &roles).ok()?.connect().await.ok()?;
        let mut client = wire::node_client::NodeClient::new(channel);
        let mut reports = client.load(wire::LoadRequest { interval_ms: 1000 }).await.ok()?.into_inner();
        let report = tokio::time::timeout(Duration::from_secs(5), reports.message()).await.ok()?.ok()??;
        Some(report.pages?.into())
    }

    /// What the metrics of a worker node whose lines begin so come to in sum.
    pub async fn count(&self, node: &str, line: &str) -> u64 {
        let url = self.nodes[node].metrics_url().expect("a worker says where its metrics are");
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|found| found.starts_with(line));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    /// Pages by state and in all, as a node's `/metrics` has them in one scrape.
    pub async fn scrape_pages(&self, node: &str) -> (u64, u64) {
        let url = self.nodes[node].metrics_url().expect("a worker says where its metrics are");
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let value =
            |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap() as u64;
        let sum = text.lines().filter(|line| line.starts_with("baton_kv_pages{")).map(value).sum();
        let total = text.lines().find(|line| line.starts_with("baton_kv_pool_pages{"));
        (sum, value(total.expect("the pool's size is a metric")))
    }

    /// Waits until every living worker holds nothing but cache; sums must hold in every look.
    pub async fn wait_until_idle(&self, within: Duration) {
        let deadline = tokio::time::Instant::now() + within;
        for node in self.nodes.keys().filter(|node| !node.starts_with("coordinator")) {
            loop {
                let counts = self.pages(node).await;
                if let Some(counts) = counts {
                    assert!(counts.sums_to_total(), "{node}: {counts:?}");
                    if counts.is_idle() {
                        break;
                    }
                }
                assert!(tokio::time::Instant::now() < deadline, "{node} still holds pages: {counts:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Asks again until there is an answer, at most [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// === impl Plan ===

impl Plan {
    fn workers(&self) -> Vec<String> {
        let names = |role: &'static str, count| (1..=count).map(move |i| format!("{role}-{i}"));
        names("prefill", self.prefill).chain(names("decode", self.decode)).collect()
    }

    fn to_toml(&self, network: Option<&Network>) -> String {
        let mut text = self.settings.clone();
        for node in self.workers().iter().chain([&"coordinator".to_owned()]) {
            let role = node.split('-').next().unwrap();
            text += &format!("\n[[nodes]]\nid = \"{node}\"\nroles = [\"{role}\"]\n");
            if let Some(network) = network {
                text += &format!("listen = \"{}:0\"\n", network.address(node));
            }
        }
        text
    }
}
