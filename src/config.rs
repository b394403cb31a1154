//! One cluster's settings: each room's own config, put together. The order of
//! precedence is file, then `--set`, then `--model`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use baton_engine::backend::cpu::Precision;
use baton_protocol::{NodeId, Role};
use baton_trust::{Gate, Listener, TlsConfig, Trust};
use serde::Deserialize;

use crate::args::Settings;

/// Everything a process needs to know. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Nodes of different clusters refuse each other.
    pub cluster: String,
    /// Model name, .gguf file, directory, or `mock`.
    pub model: String,
    /// The nodes of the cluster.
    pub nodes: Vec<NodeConfig>,
    /// Where nodes find each other.
    pub registry: RegistryConfig,
    /// Certificates with which nodes know each other; without, everything stays on this machine.
    pub tls: Option<TlsConfig>,
    /// The engine and what computes under it.
    pub engine: EngineSection,
    /// The OpenAI API.
    pub frontend: baton_frontend::Config,
    /// What operators see and do.
    pub admin: AdminConfig,
    /// Where a process without the API serves `/metrics` and `/health`.
    pub metrics_listen: SocketAddr,
    /// Routing and admission.
    pub coordinator: baton_coordinator::CoordinatorConfig,
    /// Sessions, frames and transports.
    pub transfer: baton_kv_transfer::TransferConfig,
    /// Prefill nodes.
    pub prefill: baton_prefill_node::PrefillConfig,
    /// Decode nodes.
    pub decode: baton_decode_node::DecodeConfig,
}

/// The admin API of a process that routes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// A loopback address; absent: [`USUAL`](Self::USUAL), or any port if that is taken.
    pub listen: Option<SocketAddr>,
}

/// One node of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name.
    pub id: NodeId,
    /// What it admits.
    pub roles: Vec<Role>,
    /// Where its gRPC listens, and others call it; port 0 lets the system choose.
    #[serde(default = "any_loopback_port")]
    pub listen: SocketAddr,
}

/// Where nodes find each other.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum RegistryConfig {
    /// All nodes are in this process.
    #[default]
    Memory,
    /// An etcd.
    Etcd(baton_registry::EtcdConfig),
}

/// The engine's own settings and the choice of what computes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// `cpu`, `cuda` or `mock`.
    pub backend: BackendKind,
    /// Where weights come from.
    pub load: Load,
    /// Number of the card that the CUDA backend computes on.
    pub device: usize,
    /// Arithmetic of the CPU backend.
    pub precision: Precision,
    /// In what form weights are held.
    pub weights: Weights,
    /// What a card computes in, and holds weights and cached rows in.
    pub dtype: Dtype,
    /// What cached rows are held in.
    pub kv_dtype: KvDtype,
    /// Whether a card computes the same bits for a request alone, in any batch, split and local:
    /// slower, on Hopper alone. Other backends always do.
    pub deterministic: bool,
    /// Compute threads of the process; 0 means one a core.
    pub threads: usize,
    /// Tokens of a page; 0 means 16, or 64 on a card, which has no others.
    pub page_tokens: u32,
    /// Pages of each node's pool; 0 sizes it by `kv_memory_mib`.
    pub pages: usize,
    /// Memory of each node's pool when `pages` is 0; 0 means 256, or on a card
    /// the node's share of what the weights leave.
    pub kv_memory_mib: usize,
    /// Scheduling.
    pub scheduler: baton_engine::SchedulerConfig,
    /// The mock backend's shape and times.
    pub mock: baton_engine::backend::mock::MockConfig,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The CPU kernels.
    #[default]
    Cpu,
    /// A card of NVIDIA's.
    Cuda,
    /// No model: tokens are a pure function of the prompt. For tests.
    Mock,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// The model's files.
    #[default]
    Files,
    /// Made on the card, and mean nothing: `model` is a shape, a directory with config.json or
    /// a name in shapes/. For benches.
    Random,
}

/// A form of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// On the CPU: as they are where the file has them in Q4_0, Q4_1 or Q8_0, else in bf16. On a
    /// card: in `dtype`.
    #[default]
    Auto,
    /// All in bf16, or on a card in `dtype`.
    Bf16,
    /// On the CPU: layers in four bits, embeddings in eight.
    Int4,
    /// On a card: layers in e4m3 with a scale for each output.
    Fp8,
}

/// A number of sixteen bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16: the range of f32.
    #[default]
    #[serde(alias = "bfloat16")]
    #[value(alias = "bfloat16")]
    Bf16,
    /// IEEE half precision: three more significant bits, no more than 65504.
    #[serde(alias = "float16")]
    #[value(alias = "float16")]
    Fp16,
}

/// What cached rows are held in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// As the backend computes.
    #[default]
    Auto,
    /// On a card: e4m3 with a scale for each head's key and value of a token.
    Fp8,
}

fn any_loopback_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

// === defaults ===

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            cluster: "baton".to_owned(),
            model: "smollm2-135m".to_owned(),
            nodes: Vec::new(),
            registry: RegistryConfig::Memory,
            tls: None,
            engine: EngineSection::default(),
            frontend: Default::default(),
            admin: AdminConfig::default(),
            metrics_listen: any_loopback_port(),
            coordinator: Default::default(),
            transfer: Default::default(),
            prefill: Default::default(),
            decode: Default::default(),
        }
    }
}

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            backend: BackendKind::Cpu,
            load: Load::Files,
            device: 0,
            precision: Precision::Fast,
            weights: Weights::default(),
            dtype: Dtype::Bf16,
            kv_dtype: KvDtype::Auto,
            deterministic: false,
            threads: 0,
            page_tokens: 0,
            pages: 0,
            kv_memory_mib: 0,
            scheduler: Default::default(),
            mock: Default::default(),
        }
    }
}

// === impl ClusterConfig ===

impl ClusterConfig {
    /// Reads the file that `settings` names, or nothing, and applies the rest of them.
    ///
    /// # Errors
    /// When a file cannot be read, or a key or value is not known.
    pub fn load(settings: &Settings) -> Result<Self> {
        Self::load_over("", settings)
    }

    /// As [`load`](Self::load), with `base` in place of a missing file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_over(base: &str, settings: &Settings) -> Result<Self> {
        let (text, name) = match &settings.config {
            Some(path) => (read(path)?, path.display().to_string()),
            None => (base.to_owned(), "defaults".to_owned()),
        };
        let mut table: toml::Table = text.parse().with_context(|| format!("{name} is not valid TOML"))?;
        for assignment in &settings.set {
            assign(&mut table, assignment)?;
        }
        if let Some(model) = &settings.model {
            table.insert("model".to_owned(), toml::Value::String(model.clone()));
        }
        let config: Self = table.try_into().with_context(|| format!("in {name} or --set"))?;
        config.validate()?;
        Ok(config)
    }

    /// The nodes that this process runs: those named, or one with `roles`, or all of the file, or one with every role.
    ///
    /// # Errors
    /// When a named node is not in the file.
    pub fn choose_nodes(&mut self, named: &[String], roles: &[Role]) -> Result<()> {
        if !roles.is_empty() {
            let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
            let id = NodeId(format!("{}-{}", names.join("-"), std::process::id()));
            self.nodes = vec![NodeConfig { id, roles: roles.to_vec(), listen: any_loopback_port() }];
        } else if self.nodes.is_empty() {
            self.nodes = vec![NodeConfig {
                id: "local".into(),
                roles: Role::ALL.to_vec(),
                listen: any_loopback_port(),
            }];
        }
        for name in named {
            ensure!(
                self.nodes.iter().any(|node| node.id.0 == *name),
                "there is no node {name:?} in the config"
            );
        }
        if !named.is_empty() {
            self.nodes.retain(|node| named.contains(&node.id.0));
        }
        let alone = matches!(self.registry, RegistryConfig::Memory) && !roles.is_empty();
        let all_roles = Role::ALL.iter().all(|role| self.nodes.iter().any(|node| node.roles.contains(role)));
        ensure!(
            !alone || all_roles,
            "a node that runs apart from the others needs etcd: --set registry.kind=etcd --set 'registry.endpoints=[\"http://127.0.0.1:2379\"]'"
        );
        Ok(())
    }

    /// Fetches the model if it is a name and not on this machine yet, and shows how far that is.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn make_model_available(&self) -> Result<()> {
        if self.engine.backend != BackendKind::Mock
            && self.engine.load == Load::Files
            && baton_model::resolve(&self.model, &baton_model::default_cache()).is_err()
        {
            crate::pull::fetch(&self.model)?;
        }
        Ok(())
    }

    /// Reads the certificates of this process, if the configuration names any.
    ///
    /// # Errors
    /// When they are not good for its nodes.
    pub fn trust(&self) -> Result<Trust> {
        let Some(tls) = &self.tls else { return Ok(Trust::none()) };
        let roles = self.roles();
        Trust::load(tls, &self.cluster, &roles).with_context(|| {
            let roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join("+");
            format!("in section [tls], for which `baton certs init --role {roles}` makes certificates")
        })
    }

    /// The roles of this process: all, if it names no nodes.
    pub fn roles(&self) -> BTreeSet<Role> {
        if self.nodes.is_empty() {
            return Role::ALL.into();
        }
        self.nodes.iter().flat_map(|node| node.roles.iter().copied()).collect()
    }

    /// Takes any free port when the wanted one is in use (for the demo, which prints where it is).
    pub fn use_free_port_if_taken(&mut self) {
        if std::net::TcpListener::bind(self.frontend.listen).is_err() {
            self.frontend.listen.set_port(0);
        }
    }

    /// What stands before the API.
    pub fn api_gate(&self) -> Gate {
        if self.frontend.keys_file.is_some() { Gate::Keys } else { Gate::NoKeys }
    }

    fn validate(&self) -> Result<()> {
        let mut ids: Vec<_> = self.nodes.iter().map(|node| &node.id).collect();
        ids.sort();
        ids.dedup();
        ensure!(ids.len() == self.nodes.len(), "two nodes have the same id");
        let gate = if self.tls.is_some() { Gate::Certificates } else { Gate::NoCertificates };
        for node in &self.nodes {
            ensure!(!node.roles.is_empty(), "node {} has no role", node.id);
            gate.check(node.listen).with_context(|| format!("node {}", node.id))?;
            can_be_called(node.listen).with_context(|| format!("node {}", node.id))?;
        }
        gate.check(self.transfer.data_listen).context("transfer.data_listen")?;
        can_be_called(self.transfer.data_listen).context("transfer.data_listen")?;
        ensure!(
            !self.transfer.tls || self.tls.is_some(),
            "transfer.tls needs certificates: make them with `baton certs init`, and name them in section [tls]"
        );
        self.api_gate().check(self.frontend.listen).context("frontend.listen")?;
        Gate::NoKeys.check(self.metrics_listen).context("metrics_listen")?;
        Gate::NoKeys.check(self.admin.listen.unwrap_or(AdminConfig::USUAL)).context("admin.listen")?;
        self.engine.validate()
    }
}

// === impl AdminConfig ===

impl AdminConfig {
    /// Where `baton admin` looks.
    pub const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);

    /// Listens where it is wanted, or, if nothing is said, where there is room.
    ///
    /// # Errors
    /// When the address is taken, or is not loopback's.
    pub fn listener(&self) -> Result<Listener> {
        let usual = Gate::NoKeys.listen(self.listen.unwrap_or(Self::USUAL));
        let listener = match usual {
            Err(_) if self.listen.is_none() => Gate::NoKeys.listen(any_loopback_port()),
            other => other,
        };
        listener.context("admin.listen")
    }
}

// === impl EngineSection ===

impl EngineSection {
    fn validate(&self) -> Result<()> {
        ensure!(self.page_tokens <= 1024, "engine.page_tokens must be at most 1024");
        ensure!(
            self.backend != BackendKind::Cuda || matches!(self.page_tokens, 0 | 64),
            "engine.page_tokens must be 64 on the cuda backend"
        );
        for (name, is_set, owner) in [
            ("precision", self.precision != Precision::default(), BackendKind::Cpu),
            ("weights=int4", self.weights == Weights::Int4, BackendKind::Cpu),
            ("weights=fp8", self.weights == Weights::Fp8, BackendKind::Cuda),
            ("dtype=fp16", self.dtype == Dtype::Fp16, BackendKind::Cuda),
            ("kv_dtype=fp8", self.kv_dtype == KvDtype::Fp8, BackendKind::Cuda),
            ("threads", self.threads != 0, BackendKind::Cpu),
            ("device", self.device != 0, BackendKind::Cuda),
            ("load", self.load != Load::default(), BackendKind::Cuda),
        ] {
            ensure!(
                !is_set || self.backend == owner,
                "engine.{name} is a setting of engine.backend={}, and this is {}",
                owner.as_str(),
                self.backend.as_str()
            );
        }
        Ok(())
    }
}

// === impl BackendKind ===

impl BackendKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Mock => "mock",
        }
    }
}

/// Peers are told the address that is listened on.
fn can_be_called(listen: SocketAddr) -> Result<()> {
    ensure!(!listen.ip().is_unspecified(), "others cannot call {listen}: name an address of this machine");
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Sets `a.b=VALUE`, where VALUE is TOML or else a plain string.
fn assign(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        bail!("--set {assignment:?} is not KEY=VALUE");
    };
    let parsed: Result<toml::Table, _> = format!("value = {value}").parse();
    let value = parsed
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut place = table;
    let mut path: Vec<&str> = key.split('.').collect();
    let Some(last) = path.pop().filter(|last| !last.is_empty()) else {
        bail!("--set {assignment:?} has no key")
    };
    for part in path {
        let entry = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let Some(inner) = entry.as_table_mut() else { bail!("--set {key}: {part} is not a section") };
        place = inner;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[&str]) -> Result<ClusterConfig> {
        let set = set.iter().map(|&s| s.to_owned()).collect();
        ClusterConfig::load(&Settings { set, ..Settings::default() })
    }

    #[test]
    fn settings_reach_their_place() {
        let config = with(&[
            "engine.pages=77",
            "engine.precision=reference",
            "engine.weights=int4",
            "model=a b",
            "registry.kind=etcd",
            "registry.endpoints=[\"x\"]",
        ])
        .unwrap();
        assert_eq!(config.engine.pages, 77);
        assert_eq!(config.engine.precision, Precision::Reference);
        assert_eq!(config.engine.weights, Weights::Int4);
        assert_eq!(config.model, "a b");
        assert!(matches!(config.registry, RegistryConfig::Etcd { .. }));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for set in [
            "engine.pagess=1",
            "nonsense=1",
            "engine.pages=-1",
            "engine=3",
            "novalue",
            "=1",
            "engine.backend=tpu",
            "engine.page_tokens=1025",
        ] {
            assert!(with(&[set]).is_err(), "{set}");
        }
    }

    #[test]
    fn a_card_has_pages_of_its_own() {
        assert!(with(&["engine.backend=cuda"]).is_ok());
        assert!(with(&["engine.backend=cuda", "engine.page_tokens=64"]).is_ok());
        assert!(with(&["engine.backend=cuda", "engine.page_tokens=16"]).is_err());
    }

    #[test]
    fn settings_of_another_backend_are_refused_by_name() {
        for setting in ["engine.precision=reference", "engine.weights=int4", "engine.threads=3"] {
            assert!(with(&[setting]).is_ok(), "{setting}");
            for backend in ["cuda", "mock"] {
                let error = with(&[setting, &format!("engine.backend={backend}")]).unwrap_err().to_string();
                assert!(error.contains(setting.split('=').next().unwrap()), "{error}");
                assert!(error.contains("engine.backend=cpu") && error.ends_with(backend), "{error}");
            }
        }
        for setting in
            ["engine.device=1", "engine.weights=fp8", "engine.dtype=float16", "engine.kv_dtype=fp8"]
        {
            assert!(with(&["engine.backend=cuda", setting]).is_ok(), "{setting}");
        }
        for backend in ["cpu", "mock"] {
            for (setting, name) in [
                ("engine.device=1", "device"),
                ("engine.weights=fp8", "weights=fp8"),
                ("engine.dtype=fp16", "dtype=fp16"),
                ("engine.kv_dtype=fp8", "kv_dtype=fp8"),
            ] {
                let error = with(&[setting, &format!("engine.backend={backend}")]).unwrap_err().to_string();
                let needed = format!("engine.{name} is a setting of engine.backend=cuda");
                assert!(error.starts_with(&needed), "{error}");
            }
        }
    }

    #[test]
    fn nothing_listens_beyond_loopback() {
        let refused = |set: &[&str], words: &[&str]| {
            let error = format!("{:#}", with(set).unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        let node = |addr| format!("nodes=[{{id='a',roles=['decode'],listen='{addr}:0'}}]");
        let (node, anywhere) = (node("10.0.0.1"), node("0.0.0.0"));
        let tls = "tls={ca='a',cert='b',key='c'}";
        refused(&[&node], &["node a", "10.0.0.1", "baton certs init", "[tls]"]);
        with(&[&node, tls]).unwrap();
        refused(&[&anywhere, tls], &["node a", "name an address"]);
        refused(&["transfer.data_listen=0.0.0.0:0", tls], &["transfer.data_listen", "name an address"]);
        refused(&["transfer.data_listen=10.0.0.1:0"], &["transfer.data_listen", "baton certs init"]);
        with(&["transfer.data_listen=10.0.0.1:0", tls]).unwrap();
        refused(&["transfer.tls=true"], &["transfer.tls", "baton certs init"]);
        with(&["transfer.tls=true", tls]).unwrap();
        // Whatever nodes have, clients show keys.
        refused(&["frontend.listen=0.0.0.0:8000", tls], &["frontend.listen", "API keys", "baton key new"]);
        with(&["frontend.listen=0.0.0.0:8000", "frontend.keys_file=keys.toml"]).unwrap();
        refused(&["metrics_listen=0.0.0.0:9000", tls], &["metrics_listen", "API keys"]);
        refused(&["admin.listen=10.0.0.1:8001", "frontend.keys_file=keys.toml"], &["admin.listen"]);
    }

    #[test]
    fn a_lone_role_needs_etcd() {
        let mut config = with(&[]).unwrap();
        assert!(config.choose_nodes(&[], &[Role::Prefill]).is_err());
        assert!(config.choose_nodes(&["nobody".to_owned()], &[]).is_err());
        let mut config = with(&[]).unwrap();
        config.choose_nodes(&[], &[]).unwrap();
        assert_eq!(config.nodes[0].roles, Role::ALL);
    }
}
