//! One prefill or decode node (or both in one): an engine, its gRPC services,
//! its entry in the registry.
//!
//! - `work`: which new work it takes, and who it says it is
//! - `watchdog`: a step that never ends

mod watchdog;
mod work;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use baton_decode_node::DecodeNode;
use baton_engine::{EngineHandle, EngineWorker};
use baton_kv_transfer::{LocalNode, PrefillService, Sessions, TransferConfig};
use baton_prefill_node::{PrefillNode, Returns};
use baton_protocol::{
    HeadShare, Incarnation, NodeId, NodeInfo, NodeState, Role,
    wire::{LoadReport, prefill_server::PrefillServer},
};
use baton_registry::{NodeService, Registry, node_service::Words};
use baton_trust::Trust;
use prometheus_client::registry::Registry as Metrics;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{service::interceptor::InterceptedService, transport::Server};

use self::work::Work;
use crate::{
    compute::Compute,
    config::{BackendKind, ClusterConfig, NodeConfig},
    terminal::note,
};

/// A running node. `shutdown` ends it in order.
pub struct WorkerNode {
    info: NodeInfo,
    work: Arc<Work>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    prefill_service: PrefillService,
    sessions: Arc<Sessions>,
    engine: EngineWorker,
    /// Looks after the engine.
    _watching: JoinSet<()>,
}

/// Time to take the entry out of the registry before leaving anyway.
pub const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

// === impl WorkerNode ===

impl WorkerNode {
    /// Starts the engine, listens, then announces the node.
    ///
    /// # Errors
    /// When an address is taken, or beyond loopback without certificates.
    pub async fn start(
        config: &ClusterConfig,
        node: &NodeConfig,
        (compute, trust): (&Compute, &Trust),
        (registry, metrics): (&dyn Registry, &mut Metrics),
    ) -> Result<Self> {
        let (worker, engine) = EngineWorker::start(compute.engine(&config.engine)?);
        let listener = trust.gate().listen(node.listen)?;
        let info = describe(node, compute, &engine, listener.local_addr());
        let local = LocalNode {
            cluster: config.cluster.clone(),
            node: info.id.clone(),
            incarnation: info.incarnation,
            control_addr: info.control_addr.clone(),
            model_fingerprint: info.model_fingerprint.clone(),
            kv: info.kv.clone(),
            trust: trust.clone(),
            heads: HeadShare::whole(info.kv.kv_heads),
        };
        let transfer = transfer(config, node);
        let sessions = Arc::new(Sessions::new(local.clone(), transfer.clone())?);
        let returns = Returns::new(&engine, &sessions, transfer.return_bytes_per_second);
        let prefill = PrefillNode::new(engine.clone(), Arc::clone(&sessions), &config.prefill, returns);
        let prefill_service = PrefillService::new(local, transfer, Arc::clone(&prefill) as _)?;
        let decode = DecodeNode::new(engine.clone(), Arc::clone(&sessions), config.decode.clone());
        register_metrics(metrics, &engine, (&prefill, &decode), (&prefill_service, &sessions));

        let stop = CancellationToken::new();
        let work = Arc::new(Work::new(info.clone(), (prefill, decode), trust.clone()));
        let words = words((&engine, &sessions), &work);
        let text = (info.text_digest.clone(), compute.text.to_bytes().into());
        let service = NodeService::new(words, [text], stop.clone());
        // Who may ask what is decided here, for every service of the node.
        // A prefill node asks another node only for what that one has cached.
        let (routes, hands) =
            (trust.guard(&[Role::Coordinator]), trust.guard(&[Role::Decode, Role::Prefill]));
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_service(InterceptedService::new(service.service(), routes.clone()))
            .add_service(InterceptedService::new(work.decode.service(), routes))
            .add_service(InterceptedService::new(PrefillServer::new(prefill_service.clone()), hands));
        let callers = trust.callers(listener);
        let stopped = stop.clone().cancelled_owned();
        #[expect(clippy::disallowed_methods, reason = "owned by the node and joined at shutdown")]
        let server = tokio::spawn(router.serve_with_incoming_shutdown(callers, stopped));
        work.announce(registry);
        let (mut watching, limit) = (JoinSet::new(), config.engine.step_limit());
        watching.spawn(watchdog::watch(node.id.clone(), engine, limit));
        Ok(Self { info, work, stop, server, prefill_service, sessions, engine: worker, _watching: watching })
    }

    /// Its name.
    pub fn id(&self) -> &NodeId {
        &self.info.id
    }

    /// Where its gRPC listens.
    pub fn control_addr(&self) -> &str {
        &self.info.control_addr
    }

    /// Takes no new work, lets what runs end within `grace`, leaves, and joins everything.
    pub async fn shutdown(self, grace: Duration) {
        self.work.leave(WITHDRAW_LIMIT).await;
        let drained = tokio::time::timeout(grace, async {
            tokio::join!(self.work.prefill.drain(), self.work.decode.drain())
        });
        let drained = drained.await;
        if drained.is_err() {
            note(format_args!("node {}: grace is over, ending what still runs", self.info.id));
        }
        self.sessions.shutdown().await;
        self.prefill_service.shutdown().await;
        self.stop.cancel();
        if tokio::time::timeout(Duration::from_secs(2), self.server).await.is_err() {
            note(format_args!("node {}: a caller kept its connection open", self.info.id));
        }
        let engine = self.engine;
        drop(tokio::task::spawn_blocking(move || engine.shutdown()).await);
    }
}

/// The card that pages are on, if they are on one.
pub(crate) fn device(config: &ClusterConfig) -> Option<usize> {
    (config.engine.backend == BackendKind::Cuda).then_some(config.engine.device)
}

/// Data sockets are reached where the node is, its pages lie where its engine is.
fn transfer(config: &ClusterConfig, node: &NodeConfig) -> TransferConfig {
    let mut transfer = config.transfer.clone();
    transfer.device = device(config);
    if transfer.data_listen.ip().is_loopback() && !node.listen.ip().is_loopback() {
        transfer.data_listen.set_ip(node.listen.ip());
    }
    transfer
}

fn describe(node: &NodeConfig, compute: &Compute, engine: &EngineHandle, addr: SocketAddr) -> NodeInfo {
    NodeInfo {
        id: node.id.clone(),
        incarnation: Incarnation(fastrand::u64(1..)),
        roles: node.roles.iter().copied().filter(|role| *role != Role::Coordinator).collect(),
        epoch: 0,
        control_addr: addr.to_string(),
        model: compute.name.clone(),
        model_fingerprint: compute.fingerprint.clone(),
        text_digest: compute.text.digest(),
        context_tokens: u32::try_from(compute.context_tokens).unwrap_or(u32::MAX),
        kv: engine.pool().shape().clone(),
        pages: engine.pool().counts().total,
        state: NodeState::Ready,
    }
}

/// The node's answers about itself: state, load and cache as they are when asked.
fn words((engine, sessions): (&EngineHandle, &Arc<Sessions>), work: &Arc<Work>) -> Words {
    let describe = {
        let work = Arc::clone(work);
        move || work.info()
    };
    let load = {
        let (engine, sessions, work) = (engine.clone(), Arc::clone(sessions), Arc::clone(work));
        move || {
            let (load, steps) = (engine.load(), engine.step_model());
            LoadReport {
                running_sequences: u32::try_from(load.running).unwrap_or(u32::MAX),
                waiting_sequences: u32::try_from(load.waiting).unwrap_or(u32::MAX),
                waiting_prefill_tokens: load.waiting_prefill_tokens as u64,
                pages: Some(engine.pool().counts().into()),
                draining: work.info().state == NodeState::Draining,
                kv_paths: sessions.reports().into_iter().map(Into::into).collect(),
                prefill_cost: steps.prefill.map(Into::into),
                decode_cost: steps.decode.map(Into::into),
                running_context_tokens: load.running_context_tokens as u64,
                step_prompt_tokens: load.step_prompt_tokens as u64,
                attempts_begun: work.decode.begun(),
                left_over_sequences: u32::try_from(work.left_over()).unwrap_or(u32::MAX),
            }
        }
    };
    let prefixes = {
        let pool = Arc::clone(engine.pool());
        move |after: Option<u64>| {
            after.map_or_else(|| pool.prefix_snapshot(), |after| pool.prefix_changes(after))
        }
    };
    let forget = {
        let pool = Arc::clone(engine.pool());
        move || pool.flush_cache()
    };
    let drain = {
        let work = Arc::clone(work);
        move |drain| work.drain(drain)
    };
    let set_roles = {
        let work = Arc::clone(work);
        move |epoch, roles| work.set_roles(epoch, roles)
    };
    Words {
        describe: Arc::new(describe),
        load: Arc::new(load),
        prefixes: Arc::new(prefixes),
        drain: Arc::new(drain),
        set_roles: Arc::new(set_roles),
        forget: Arc::new(forget),
    }
}

fn register_metrics(
    metrics: &mut Metrics,
    engine: &EngineHandle,
    (prefill, decode): (&PrefillNode, &DecodeNode),
    (serving, sessions): (&PrefillService, &Sessions),
) {
    engine.metrics().register(metrics);
    prefill.metrics().register(metrics);
    decode.metrics().register(metrics);
    serving.metrics().register(metrics);
    sessions.metrics().register(metrics);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sockets_are_where_the_node_is() {
        let at = |node: &str, data: &str| {
            let mut config = ClusterConfig::default();
            config.transfer.data_listen = data.parse().unwrap();
            let node =
                NodeConfig { id: "n".into(), roles: Vec::new(), model: None, listen: node.parse().unwrap() };
            transfer(&config, &node).data_listen.to_string()
        };
        assert_eq!(at("127.0.0.1:7000", "127.0.0.1:7001"), "127.0.0.1:7001");
        assert_eq!(at("10.0.0.1:7000", "127.0.0.1:7001"), "10.0.0.1:7001");
        assert_eq!(at("10.0.0.1:7000", "10.0.1.1:7001"), "10.0.1.1:7001");
    }
}
