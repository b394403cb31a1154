//! One prefill or decode node, put together of the rooms' own parts, as the
//! binary does it. Only its engine has no thread: a task steps it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use baton_decode_node::{DecodeConfig, DecodeNode};
use baton_engine::{
    Engine, EngineConfig, EngineHandle, StepOutcome,
    backend::mock::{EOS_TOKEN, MockBackend, MockConfig},
};
use baton_kv_transfer::{LocalNode, PrefillService, Sessions, StandIn};
use baton_prefill_node::{PrefillConfig, PrefillNode, Returns};
use baton_protocol::{
    HeadShare, Incarnation, NodeId, NodeInfo, NodeState, Role,
    wire::{LoadReport, prefill_server::PrefillServer},
};
use baton_registry::{
    NodeService, Registry,
    node_service::{RolesError, Words},
};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{frames::Frames, network::callers, registry::SimulatedRegistry, world::World};

/// Who a node is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its name, which is its host's.
    pub name: &'static str,
    /// Where its gRPC listens.
    pub port: u16,
    /// What it does.
    pub role: Role,
}

/// Tokens of the longest sequence.
pub const CONTEXT_TOKENS: usize = 512;

/// Time between two looks of an engine that has nothing to do.
const IDLE: Duration = Duration::from_millis(5);

/// Pages of a pool: few, so that requests meet.
const PAGES: usize = 96;

// === impl Identity ===

impl Identity {
    /// Starts the node and runs it until its host dies.
    ///
    /// # Errors
    /// When it cannot listen, or its server ends.
    pub async fn run(self, world: Arc<World>) -> turmoil::Result {
        let engine = self.engine()?;
        let handle = engine.handle();
        let info = self.describe(&world, &handle);
        let local = LocalNode {
            cluster: "simulated".to_owned(),
            node: info.id.clone(),
            incarnation: info.incarnation,
            control_addr: info.control_addr.clone(),
            model_fingerprint: info.model_fingerprint.clone(),
            kv: info.kv.clone(),
            trust: world.trust.clone(),
            heads: HeadShare::whole(info.kv.kv_heads),
        };
        let mut transfer = world.transfer.clone();
        transfer.stand_in = Some(StandIn(Arc::new(Frames::new(self.name))));
        let sessions = Arc::new(Sessions::new(local.clone(), transfer.clone())?);
        let returns = Returns::new(&handle, &sessions, transfer.return_bytes_per_second);
        let prefill =
            PrefillNode::new(handle.clone(), Arc::clone(&sessions), &PrefillConfig::default(), returns);
        let prefill_service = PrefillService::new(local, transfer, Arc::clone(&prefill) as _)?;
        let decode = DecodeNode::new(handle.clone(), Arc::clone(&sessions), DecodeConfig::default());
        let words = words(&info, (&handle, &sessions), &decode);
        let node = NodeService::new(words, [], CancellationToken::new());
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_service(node.service())
            .add_service(decode.service())
            .add_service(PrefillServer::new(prefill_service.clone()));
        let serving = router.serve_with_incoming(callers(self.port).await?);

        let registry = Arc::new(SimulatedRegistry::default());
        let mut following = JoinSet::new();
        following.spawn(registry.clone().follow(world.store.clone(), self.name.to_owned()));
        let _registration = registry.register(info);
        world.started(self.name, handle);
        tokio::select! {
            served = serving => Ok(served?),
            () = self.step(engine, &world) => std::future::pending().await,
        }
    }

    fn engine(self) -> Result<Engine, Box<dyn std::error::Error>> {
        let mut config = EngineConfig::new(PAGES, CONTEXT_TOKENS);
        config.eos_tokens = vec![EOS_TOKEN];
        config.scheduler.max_batch_tokens = 64;
        // Pages of the two roles differ.
        let page_tokens = if self.role == Role::Prefill { 16 } else { 8 };
        Ok(Engine::new(Box::new(MockBackend::new(MockConfig::default(), page_tokens)), config)?)
    }

    fn describe(self, world: &World, engine: &EngineHandle) -> NodeInfo {
        NodeInfo {
            id: NodeId::from(self.name),
            incarnation: Incarnation(world.incarnation()),
            roles: BTreeSet::from([self.role]),
            epoch: 0,
            control_addr: format!("127.0.0.1:{}", self.port),
            model: "mock".to_owned(),
            model_fingerprint: "mock".to_owned(),
            text_digest: "none".to_owned(),
            context_tokens: CONTEXT_TOKENS as u32,
            kv: engine.pool().shape().clone(),
            pages: engine.pool().counts().total,
            state: NodeState::Ready,
        }
    }

    /// What the engine's thread does. A step is over at once, and takes its time after.
    async fn step(self, mut engine: Engine, world: &World) {
        loop {
            let pause = match engine.step() {
                Ok(StepOutcome::Ran) => world.step(self.name),
                Ok(StepOutcome::Stalled | StepOutcome::Idle) => IDLE,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    return world.wrong(&format!("the engine of {} stopped: {error}: {cause:?}", self.name));
                }
            };
            sleep(pause).await;
        }
    }
}

fn words(info: &NodeInfo, (engine, sessions): (&EngineHandle, &Arc<Sessions>), decode: &DecodeNode) -> Words {
    let load = {
        let (engine, sessions, decode) = (engine.clone(), Arc::clone(sessions), decode.clone());
        move || {
            let (load, steps) = (engine.load(), engine.step_model());
            LoadReport {
                running_sequences: load.running as u32,
                waiting_sequences: load.waiting as u32,
                waiting_prefill_tokens: load.waiting_prefill_tokens as u64,
                pages: Some(engine.pool().counts().into()),
                draining: false,
                kv_paths: sessions.reports().into_iter().map(Into::into).collect(),
                prefill_cost: steps.prefill.map(Into::into),
                decode_cost: steps.decode.map(Into::into),
                running_context_tokens: load.running_context_tokens as u64,
                step_prompt_tokens: load.step_prompt_tokens as u64,
                attempts_begun: decode.begun(),
                left_over_sequences: 0,
            }
        }
    };
    let described = info.clone();
    let (pool, flushed) = (Arc::clone(engine.pool()), Arc::clone(engine.pool()));
    Words {
        describe: Arc::new(move || described.clone()),
        load: Arc::new(load),
        prefixes: Arc::new(move |after: Option<u64>| {
            after.map_or_else(|| pool.prefix_snapshot(), |after| pool.prefix_changes(after))
        }),
        // Nobody asks for either: state and roles stay what they are here.
        drain: Arc::new(|_| false),
        set_roles: Arc::new(|_, _| Err(RolesError::NoWork)),
        forget: Arc::new(move || flushed.flush_cache()),
    }
}
