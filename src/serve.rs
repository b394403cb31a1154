//! `baton serve`: composes the roles of this process and takes them down again.

use std::{
    collections::BTreeSet, convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration,
};

use anyhow::{Context, Result};
use axum::Router;
use baton_admin::{Desk, Ledger};
use baton_coordinator::{Coordinator, CoordinatorTasks, Health};
use baton_frontend::{Door, FrontendError, HttpMetrics, KeptAnswers, Seat, Services, Shelves};
use baton_model::ModelText;
use baton_protocol::{Incarnation, NodeId, NodeInfo, Role};
use baton_registry::{EtcdConfig, EtcdRegistry, MemoryRegistry, Registration, Registry};
use baton_trust::{Gate, Https, Trust, for_roles};
use prometheus_client::registry::Registry as Metrics;
use tokio::{
    signal::unix::SignalKind,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    allocator, args,
    compute::Compute,
    config::{ClusterConfig, NodeConfig, RegistryConfig},
    tasks::Tasks,
    terminal::{note, say},
    worker_node::{WITHDRAW_LIMIT, WorkerNode},
};

/// The nodes of this process, running.
pub struct Cluster {
    config: Arc<ClusterConfig>,
    trust: Trust,
    url: Option<String>,
    stop: CancellationToken,
    frontend: Option<JoinHandle<Result<(), FrontendError>>>,
    admin: Option<JoinHandle<Result<(), FrontendError>>>,
    admin_grpc: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    coordinator: Option<CoordinatorTasks>,
    /// Its entry among the coordinators.
    entry: Option<Registration>,
    workers: Vec<WorkerNode>,
    /// What this process's nodes read and write; the API needs no copies of its own.
    texts: Vec<Arc<ModelText>>,
    /// Last to go: nodes withdraw from it first.
    registry: Arc<dyn Registry>,
    /// Looks after files that may change.
    following: JoinSet<Infallible>,
}

/// Prefix of every metric of this program.
const METRICS_PREFIX: &str = "baton";
/// Time for operators' calls over gRPC to end.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// The configuration of this process's nodes, or none where it was only to be checked. To be called before
/// there are other threads.
///
/// # Errors
/// When the configuration is wrong.
pub fn settle(args: &args::Serve) -> Result<Option<ClusterConfig>> {
    let mut config = ClusterConfig::load(&args.settings)?;
    config.choose_nodes(&args.nodes, &args.roles)?;
    if args.check {
        let nodes: Vec<_> = config.nodes.iter().map(|node| node.id.to_string()).collect();
        say(format_args!("the settings of {} are good", nodes.join(", ")));
        return Ok(None);
    }
    if config.roles() == BTreeSet::from([Role::Coordinator]) {
        allocator::stay_small();
    }
    Ok(Some(config))
}

/// Runs the chosen nodes until a signal.
///
/// # Errors
/// When something does not start.
pub async fn run(config: ClusterConfig) -> Result<()> {
    // Who sends it wants files to be read again, as they are anyway, and not that the process ends.
    let _hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
    let nodes: Vec<_> = config.nodes.iter().map(|node| node.id.to_string()).collect();
    let traces = baton_traces::export(&config.traces, &nodes.join("+"))?;
    let cluster = Cluster::start(Arc::new(config)).await?;
    if let Some(url) = cluster.url() {
        say(format_args!("ready at {url}"));
    }
    shutdown_signal().await?;
    note("stopping; running answers may end");
    cluster.shutdown().await;
    // The last spans leave meanwhile, over this runtime.
    Ok(tokio::task::spawn_blocking(move || drop(traces)).await?)
}

/// Ready at SIGINT or SIGTERM.
///
/// # Errors
/// When the process cannot listen for signals.
pub async fn shutdown_signal() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

// === impl Cluster ===

impl Cluster {
    /// Starts every node of `config`.
    ///
    /// # Errors
    /// When the model cannot be loaded, an address is taken, or a setting or certificate cannot work.
    pub async fn start(config: Arc<ClusterConfig>) -> Result<Self> {
        let trust = config.trust()?;
        let registry: Arc<dyn Registry> = match &config.registry {
            RegistryConfig::Memory => Arc::new(MemoryRegistry::new()),
            RegistryConfig::Etcd(etcd) => {
                // `{roles}` means the same here as in section [tls].
                let own = |path: &Option<PathBuf>| Some(for_roles(path.as_deref()?, &config.roles()));
                let etcd = EtcdConfig { cert: own(&etcd.cert), key: own(&etcd.key), ..etcd.clone() };
                Arc::new(EtcdRegistry::start(&config.cluster, etcd)?)
            }
        };
        let (mut metrics, mut following) = (Metrics::with_prefix(METRICS_PREFIX), JoinSet::new());
        metrics.register_collector(Box::new(Tasks::here()));
        let followed = trust.clone();
        following.spawn(async move { followed.follow().await });
        let mut cluster = Self {
            url: None,
            stop: CancellationToken::new(),
            frontend: None,
            admin: None,
            admin_grpc: None,
            coordinator: None,
            entry: None,
            workers: Vec::new(),
            texts: Vec::new(),
            registry,
            trust,
            config,
            following,
        };
        let started = cluster.start_nodes(&mut metrics).await;
        let started = match started {
            Ok(()) if cluster.routes() => cluster.start_coordinator(metrics).await,
            Ok(()) => cluster.start_metrics(metrics).await,
            other => other,
        };
        match started {
            Ok(()) => Ok(cluster),
            Err(error) => {
                cluster.shutdown().await;
                Err(error)
            }
        }
    }

    /// Base URL of the OpenAI API, if this process serves it.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Lets running answers end within the grace period, leaves the registry, and joins everything.
    pub async fn shutdown(mut self) {
        if let Some(entry) = self.entry.take() {
            // Others take over what this one keeps.
            entry.withdraw(WITHDRAW_LIMIT).await;
        }
        self.stop.cancel();
        for (name, serving) in [("frontend", self.frontend.take()), ("admin", self.admin.take())] {
            let Some(serving) = serving else { continue };
            match serving.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => note(format_args!("{name}: {error}")),
                Err(error) => note(format_args!("{name}: {error}")),
            }
        }
        if let Some(serving) = self.admin_grpc.take()
            && tokio::time::timeout(LAST_CALLS, serving).await.is_err()
        {
            note("admin: a caller kept its connection open");
        }
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.shutdown().await;
        }
        let grace = Duration::from_millis(self.config.frontend.grace_ms);
        futures::future::join_all(self.workers.drain(..).map(|worker| worker.shutdown(grace))).await;
        // A registry may own threads; they are joined where blocking is allowed.
        let registry = self.registry;
        drop(tokio::task::spawn_blocking(move || drop(registry)).await);
    }

    /// Whether one of this process's nodes is a coordinator.
    fn routes(&self) -> bool {
        self.config.nodes.iter().any(|node| node.roles.contains(&Role::Coordinator))
    }

    async fn start_nodes(&mut self, metrics: &mut Metrics) -> Result<()> {
        for config in self.config.by_model().into_iter().map(Arc::new) {
            let compute = {
                let config = Arc::clone(&config);
                tokio::task::spawn_blocking(move || Compute::load(&config)).await??
            };
            self.texts.push(Arc::clone(&compute.text));
            for node in &config.nodes {
                let scope = metrics.sub_registry_with_label(("node".into(), node.id.0.clone().into()));
                let worker =
                    WorkerNode::start(&config, node, (&compute, &self.trust), (&*self.registry, scope))
                        .await
                        .with_context(|| format!("cannot start node {}", node.id))?;
                say(format_args!("node {} control {}", worker.id(), worker.control_addr()));
                self.workers.push(worker);
            }
        }
        let only_routes = |node: &&NodeConfig| node.roles.iter().all(|role| *role == Role::Coordinator);
        for node in self.config.nodes.iter().filter(only_routes) {
            say(format_args!("node {} routes", node.id));
        }
        Ok(())
    }

    /// A process without the API still shows its metrics, on a port of the system's choice.
    async fn start_metrics(&mut self, metrics: Metrics) -> Result<()> {
        let listener = Gate::NoKeys.listen(self.config.metrics_listen)?;
        say(format_args!("metrics at http://{}/metrics", listener.local_addr()));
        let (limits, stop) = (self.config.frontend.clone(), self.stop.clone().cancelled_owned());
        #[expect(clippy::disallowed_methods, reason = "owned by the cluster and joined at shutdown")]
        let serving = tokio::spawn(baton_frontend::serve_metrics(listener, limits, Arc::new(metrics), stop));
        self.frontend = Some(serving);
        Ok(())
    }

    async fn start_coordinator(&mut self, mut metrics: Metrics) -> Result<()> {
        let (coordinator, tasks) =
            Coordinator::new(self.config.coordinator.clone(), Arc::clone(&self.registry), self.trust.clone());
        self.coordinator = Some(tasks);
        coordinator.metrics().register(&mut metrics);
        let http = HttpMetrics::register(&mut metrics);
        let limits = self.config.frontend.clone();
        let (kept, shelves) = (KeptAnswers::open(&limits).await?, Shelves::open(&limits).await?);
        let door = Door::new(limits.keys_file.clone()).await?;
        let https = limits.tls.as_ref().map(Https::load).transpose().context("frontend.tls")?;
        let listener = self.config.api_gate().listen(limits.listen)?;
        let scheme = if https.is_some() { "https" } else { "http" };
        self.url = Some(format!("{scheme}://{}", listener.local_addr()));
        let (inside, api) = oneshot::channel();
        let services = Services {
            dispatch: Arc::new(coordinator.clone()),
            registry: Arc::new(metrics),
            metrics: http,
            door,
            https,
            kept,
            shelves,
            seat: self.take_seat()?,
            inside: Some(inside),
            texts: self.texts.clone(),
        };
        let stop = self.stop.clone().cancelled_owned();
        #[expect(clippy::disallowed_methods, reason = "owned by the cluster and joined at shutdown")]
        let frontend = tokio::spawn(baton_frontend::serve(listener, limits, services, stop));
        self.frontend = Some(frontend);
        self.start_admin(&coordinator, api).await?;
        wait_until_served(&coordinator, self.workers.len()).await;
        Ok(())
    }

    /// Announces this coordinator to the others. Those of one process alone have none.
    fn take_seat(&mut self) -> Result<Option<Seat>> {
        let routes = |node: &&NodeConfig| node.roles.contains(&Role::Coordinator);
        let node = self.config.nodes.iter().find(routes);
        let Some(node) = node.filter(|_| matches!(self.config.registry, RegistryConfig::Etcd(_))) else {
            return Ok(None);
        };
        // A node that works besides is announced, and called, as that.
        let (own, listen) = match node.roles.as_slice() {
            [_] => (node.id.clone(), node.listen),
            _ => (NodeId(format!("{}-api", node.id)), SocketAddr::new(node.listen.ip(), 0)),
        };
        let listener = self.trust.gate().listen(listen)?;
        let addr = listener.local_addr().to_string();
        say(format_args!("other coordinators at {addr}"));
        let entry = NodeInfo::routing(own.clone(), Incarnation(fastrand::u64(1..)), addr);
        self.entry = Some(self.registry.register(entry));
        let (trust, members) = (self.trust.clone(), self.registry.watch());
        Ok(Some(Seat { own, trust, members, listener }))
    }

    /// What operators see and do: the console and the admin API, which is given the users' API too.
    async fn start_admin(&mut self, coordinator: &Coordinator, api: oneshot::Receiver<Router>) -> Result<()> {
        let mut desk = Desk::new(coordinator.clone());
        if let Some(file) = &self.config.admin.keys_file {
            let door = Arc::new(Door::of_operators(file.clone()).await.context("admin.keys_file")?);
            let followed = Arc::clone(&door);
            self.following.spawn(async move { followed.follow().await });
            desk = desk.for_owners(Arc::new(move |key| door.operator_of(key)));
        }
        if let Some(file) = self.config.admin.audit_file.clone() {
            let opened = tokio::task::spawn_blocking(move || Ledger::open(file)).await?;
            let ledger = opened.context("admin.audit_file")?;
            if let Some(fault) = ledger.fault() {
                note(format_args!("operators can do nothing until this file is moved away: {fault}"));
            }
            desk = desk.with_ledger(ledger);
        }
        // Without the API there is no playground, and soon no process.
        if let Ok(api) = api.await {
            desk = desk.with_playground(api);
        }
        let listener = self.config.admin.listener()?;
        say(format_args!("admin at http://{}", listener.local_addr()));
        match baton_console::missing() {
            None => say(format_args!("console at http://{}/console/", listener.local_addr())),
            Some(why) => note(format_args!("no console in this binary: {why}")),
        }
        let router = baton_admin::router(desk.clone()).merge(baton_console::router());
        let (limits, stop) = (self.config.frontend.clone(), self.stop.clone().cancelled_owned());
        #[expect(clippy::disallowed_methods, reason = "owned by the cluster and joined at shutdown")]
        let serving = tokio::spawn(baton_frontend::serve_routes(listener, limits, router, stop));
        self.admin = Some(serving);
        self.start_admin_grpc(desk)
    }

    fn start_admin_grpc(&mut self, desk: Desk) -> Result<()> {
        let Some(listen) = self.config.admin.grpc_listen else { return Ok(()) };
        let listener = Gate::NoKeys.listen(listen).context("admin.grpc_listen")?;
        say(format_args!("admin over gRPC at http://{}", listener.local_addr()));
        let server = Server::builder().add_service(baton_admin::service(desk));
        let (calls, stop) = (TcpIncoming::from(listener.into_inner()), self.stop.clone().cancelled_owned());
        #[expect(clippy::disallowed_methods, reason = "owned by the cluster and joined at shutdown")]
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(calls, stop));
        self.admin_grpc = Some(serving);
        Ok(())
    }
}

/// "Ready" is said when the nodes of this process, at least, would be used.
async fn wait_until_served(coordinator: &Coordinator, nodes: usize) {
    let served = async {
        loop {
            let status = coordinator.status();
            let ready = status.nodes.iter().filter(|node| node.health == Health::Ready).count();
            if ready >= nodes && (nodes == 0 || status.ready) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    drop(tokio::time::timeout(Duration::from_secs(5), served).await);
}
