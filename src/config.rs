//! One cluster's settings: each room's own config, put together. The order of
//! precedence is file, then `--set`, then `--model`.
//!
//! - `engine`: what computes, and in what form

mod engine;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use baton_protocol::{NodeId, Role};
use baton_trust::{Gate, Listener, TlsConfig, Trust};
use serde::Deserialize;

pub use self::engine::{BackendKind, Dtype, EngineSection, KvDtype, Load, Weights};
use crate::args::Settings;

/// Everything a process needs to know. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Nodes of different clusters refuse each other.
    pub cluster: String,
    /// Model name, .gguf file, directory, or `mock`: of the nodes that name none.
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
    /// Where spans of requests go.
    pub traces: baton_traces::TracesConfig,
}

/// The admin API of a process that routes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// A loopback address; absent: 127.0.0.1:8001, or any port if that is taken.
    pub listen: Option<SocketAddr>,
    /// The file of operators' keys, which `baton key new` adds to; none: everyone on this machine may call.
    pub keys_file: Option<PathBuf>,
    /// The file to which every act of an operator is added before it is done; none: the log alone has them.
    pub audit_file: Option<PathBuf>,
    /// Another loopback address, for the same over gRPC (`admin/proto/admin.proto`); absent: none.
    pub grpc_listen: Option<SocketAddr>,
}

/// One node of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name.
    pub id: NodeId,
    /// What it admits.
    pub roles: Vec<Role>,
    /// The model that it serves; absent: that of the cluster.
    #[serde(default)]
    pub model: Option<String>,
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
            traces: Default::default(),
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
            self.nodes =
                vec![NodeConfig { id, roles: roles.to_vec(), model: None, listen: any_loopback_port() }];
        } else if self.nodes.is_empty() {
            self.nodes = vec![NodeConfig {
                id: "local".into(),
                roles: Role::ALL.to_vec(),
                model: None,
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
        ensure!(
            self.engine.backend != BackendKind::Cuda || self.by_model().len() < 2,
            "a process serves one model from a card: name its nodes with --node"
        );
        let alone = matches!(self.registry, RegistryConfig::Memory) && !roles.is_empty();
        let all_roles = Role::ALL.iter().all(|role| self.nodes.iter().any(|node| node.roles.contains(role)));
        ensure!(
            !alone || all_roles,
            "a node that runs apart from the others needs etcd: --set registry.kind=etcd --set 'registry.endpoints=[\"http://127.0.0.1:2379\"]'"
        );
        Ok(())
    }

    /// The same with the nodes of one model alone, for each model that has nodes which compute.
    pub fn by_model(&self) -> Vec<Self> {
        let works = |node: &&NodeConfig| node.roles.iter().any(|role| *role != Role::Coordinator);
        let model = |node: &NodeConfig| node.model.clone().unwrap_or_else(|| self.model.clone());
        let mut models: BTreeMap<String, Vec<NodeConfig>> = BTreeMap::new();
        for node in self.nodes.iter().filter(works) {
            models.entry(model(node)).or_default().push(node.clone());
        }
        models.into_iter().map(|(model, nodes)| Self { model, nodes, ..self.clone() }).collect()
    }

    /// Fetches the model if it is a name and not on this machine yet, and shows how far that is.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn make_model_available(&self) -> Result<()> {
        let has_files = self.engine.backend != BackendKind::Mock || self.engine.mock.speaks_model;
        if has_files
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
        self.traces.check()?;
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
        if let Some(listen) = self.admin.grpc_listen {
            Gate::NoKeys.check(listen).context("admin.grpc_listen")?;
        }
        self.coordinator.validate().context("section [coordinator]")?;
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

/// Peers are told the address that is listened on.
fn can_be_called(listen: SocketAddr) -> Result<()> {
    ensure!(!listen.ip().is_unspecified(), "others cannot call {listen}: name an address of this machine");
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<String> {
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
mod tests;
