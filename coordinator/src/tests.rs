//! The coordinator against scripted nodes.

mod certified;
mod fake;
mod losing;
mod predicting;
mod prefixes;
mod roles;
mod routing;
mod serving;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use baton_protocol::{
    Bill, Event, FinishReason, Incarnation, KvDtype, KvShape, NodeInfo, NodeState, Request, RequestId, Role,
    Sampling, Stop, Token,
};
use baton_registry::{MemoryRegistry, Registration, Registry};
use baton_trust::Trust;
use futures::StreamExt;
use tokio::time::timeout;

use self::fake::FakeNode;
use crate::{Answer, Coordinator, CoordinatorConfig, CoordinatorTasks, Health, Wishes};

/// Long enough for a busy machine; tests wait for states, not for times.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn node_info(name: &str, roles: &[Role]) -> NodeInfo {
    NodeInfo {
        id: name.into(),
        incarnation: Incarnation(1),
        roles: roles.iter().copied().collect::<BTreeSet<_>>(),
        epoch: 0,
        control_addr: "127.0.0.1:1".into(),
        model: "mock".into(),
        model_fingerprint: "f".into(),
        text_digest: blake3::hash(fake::TEXT).to_hex().to_string(),
        context_tokens: 64,
        kv: KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: 16 },
        pages: 8,
        state: NodeState::Ready,
    }
}

pub(crate) fn request(choices: u32) -> Request {
    Request {
        id: RequestId(7),
        model: "mock".into(),
        tenant: String::new(),
        tokens: vec![1, 2, 3],
        sampling: Sampling::greedy(),
        stop: Stop { max_tokens: 100, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
        choices,
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: LONG,
    }
}

/// The only right token at a place.
fn token(choice: u32, position: u32) -> Event {
    let id = choice * 1000 + position;
    Event::Token(Token { choice, position, id, logprob: None, top: Vec::new() })
}

fn finished(choice: u32) -> Event {
    Event::Finished { choice, reason: FinishReason::Stop }
}

fn accepted() -> Event {
    Event::Accepted { cached_tokens: 0 }
}

fn bill(cached_tokens: u32) -> Event {
    Event::Bill(Bill { cached_tokens, ..Bill::default() })
}

/// Nodes, a registry that knows them, and a coordinator that has asked them.
struct Cluster {
    nodes: Vec<FakeNode>,
    registrations: Vec<Registration>,
    registry: MemoryRegistry,
    coordinator: Coordinator,
    tasks: CoordinatorTasks,
}

fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        policy: crate::PolicyName::RoundRobin,
        health_interval_ms: 200,
        node_wait_ms: 1000,
        ..CoordinatorConfig::default()
    }
}

impl Cluster {
    /// Decode nodes of these names.
    async fn decode(names: &[&str]) -> Self {
        let infos = names.iter().map(|name| node_info(name, &[Role::Decode])).collect();
        Self::start(config(), infos).await
    }

    async fn start(config: CoordinatorConfig, infos: Vec<NodeInfo>) -> Self {
        let mut cluster = Self::empty(config, Trust::none());
        for info in infos {
            let node = FakeNode::start(info).await;
            cluster.registrations.push(cluster.registry.register(node.info()));
            cluster.nodes.push(node);
        }
        let answered = |healths: &[(String, Health)]| {
            healths.len() == cluster.nodes.len()
                && healths.iter().all(|(_, health)| *health != Health::Joining)
        };
        cluster.until("all nodes answered", answered).await;
        cluster
    }

    fn empty(config: CoordinatorConfig, trust: Trust) -> Self {
        let registry = MemoryRegistry::new();
        let (coordinator, tasks) = Coordinator::new(config, Arc::new(registry.clone()), trust);
        Self { nodes: Vec::new(), registrations: Vec::new(), registry, coordinator, tasks }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&[(String, Health)]) -> bool) {
        let healths = || -> Vec<_> {
            let status = self.coordinator.status();
            status.nodes.into_iter().map(|node| (node.id.0, node.health)).collect()
        };
        let waited = timeout(LONG, async {
            while !is_so(&healths()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "waited in vain: {what}; nodes are {:?}", healths());
    }

    async fn events(&self, request: Request) -> Vec<Event> {
        all(self.coordinator.dispatch(request, Wishes::default()).await.unwrap()).await
    }
}

/// The whole answer, which must end. How long this machine took to admit it, and for attempts before, is left out.
async fn all(answer: Answer) -> Vec<Event> {
    let admitted_at_once = |event| match event {
        Event::Bill(bill) => Event::Bill(Bill { queue: Duration::ZERO, earlier: Duration::ZERO, ..bill }),
        other => other,
    };
    timeout(LONG, answer.map(admitted_at_once).collect()).await.expect("an answer ends")
}
