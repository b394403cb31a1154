//! The same cases over the simulated registry and over a real etcd.

#![expect(clippy::unwrap_used, reason = "tests, and what only tests use")]

#[expect(dead_code, reason = "what the registry's own tests need of it")]
#[path = "../../registry/src/etcd/tests/process.rs"]
mod process;

use std::{sync::Arc, time::Duration};

use baton_protocol::{Incarnation, KvDtype, KvShape, NodeInfo, NodeState, Role};
use baton_registry::{EtcdConfig, EtcdRegistry, Members, Registry};
use baton_simulation::registry::{Kept, SimulatedRegistry, Store};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use process::Etcd;

/// Long enough for a busy machine; tests wait for states, not for times.
const LONG: Duration = Duration::from_secs(60);

/// A store, and what happens to it.
trait Ground {
    /// The registry of one more process.
    fn join(&mut self) -> Arc<dyn Registry>;
    /// Ends all leases.
    async fn end_leases(&mut self);
    /// Loses everything.
    fn lose_everything(&mut self);
    /// Out of reach, or back.
    fn set_away(&mut self, is_away: bool);
}

#[derive(Default)]
struct Simulated {
    store: Store,
    processes: JoinSet<()>,
}

struct Real(Etcd);

impl Ground for Simulated {
    fn join(&mut self) -> Arc<dyn Registry> {
        let registry = Arc::new(SimulatedRegistry::default());
        self.processes.spawn(registry.clone().follow(self.store.clone(), "process".to_owned()));
        registry
    }

    async fn end_leases(&mut self) {
        self.store.expire();
    }

    fn lose_everything(&mut self) {
        self.store.restore(Kept::default());
    }

    fn set_away(&mut self, is_away: bool) {
        self.store.set_away(is_away);
    }
}

impl Ground for Real {
    fn join(&mut self) -> Arc<dyn Registry> {
        let config = EtcdConfig { lease_seconds: 2, ..EtcdConfig::new(vec![self.0.endpoint()]) };
        Arc::new(EtcdRegistry::start("test", config).unwrap())
    }

    async fn end_leases(&mut self) {
        let mut client = etcd_client::Client::connect([self.0.endpoint()], None).await.unwrap();
        for lease in client.leases().await.unwrap().leases() {
            client.lease_revoke(lease.id()).await.unwrap();
        }
    }

    fn lose_everything(&mut self) {
        self.0.restart_empty();
    }

    fn set_away(&mut self, is_away: bool) {
        self.0.signal(if is_away { "STOP" } else { "CONT" });
    }
}

fn node(name: &str, incarnation: u64) -> NodeInfo {
    NodeInfo {
        id: name.into(),
        incarnation: Incarnation(incarnation),
        roles: [Role::Decode].into(),
        epoch: 0,
        control_addr: "127.0.0.1:1".into(),
        model: "mock".into(),
        model_fingerprint: "f".into(),
        text_digest: "t".into(),
        context_tokens: 64,
        kv: KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: 16 },
        pages: 8,
        state: NodeState::Ready,
    }
}

async fn until(members: &mut watch::Receiver<Members>, what: &str, is_so: impl FnMut(&Members) -> bool) {
    let found = timeout(LONG, members.wait_for(is_so)).await.is_ok();
    assert!(found, "waited in vain: {what}; members are {:?}", members.borrow().keys());
}

async fn until_connected(registry: &dyn Registry, connected: bool) {
    let waited = timeout(LONG, async {
        while registry.health().connected != connected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain to be connected: {connected}");
}

fn is(members: &Members, info: &NodeInfo) -> bool {
    members.get(&info.id) == Some(info)
}

/// Every case, one after the other over one store.
async fn hold(mut ground: impl Ground) {
    let (here, there) = (ground.join(), ground.join());
    let mut members = there.watch();

    // Seen, changed, gone.
    let mut first = here.register(node("a", 1));
    assert!(timeout(LONG, first.published()).await.is_ok());
    until(&mut members, "registered", |m| is(m, &node("a", 1))).await;
    let draining = NodeInfo { state: NodeState::Draining, ..node("a", 1) };
    first.update(draining.clone());
    until(&mut members, "updated", |m| is(m, &draining)).await;
    assert!(first.withdraw(LONG).await);
    until(&mut members, "withdrawn", Members::is_empty).await;

    // The later incarnation of another process stays when the earlier one leaves.
    let earlier = here.register(node("a", 2));
    until(&mut members, "the earlier one", |m| is(m, &node("a", 2))).await;
    let mut later = there.register(node("a", 3));
    assert!(timeout(LONG, later.published()).await.is_ok());
    until(&mut members, "the later one", |m| is(m, &node("a", 3))).await;
    assert!(earlier.withdraw(LONG).await);
    let mut marker = here.register(node("b", 1));
    assert!(timeout(LONG, marker.published()).await.is_ok());
    until(&mut members, "both", |m| m.len() == 2 && is(m, &node("a", 3))).await;

    // Leases that end are taken again.
    ground.end_leases().await;
    let losses = async || {
        while here.health().lease_losses == 0 || there.health().lease_losses == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(LONG, losses()).await.is_ok(), "both leases were lost");
    until(&mut members, "both again", |m| is(m, &node("a", 3)) && is(m, &node("b", 1))).await;

    // Members are kept while the store is away.
    ground.set_away(true);
    until_connected(&*there, false).await;
    assert_eq!(members.borrow().len(), 2);
    ground.set_away(false);
    until_connected(&*there, true).await;
    until(&mut members, "still both", |m| m.len() == 2).await;

    // A store that knows nothing any more is told again.
    let before = (here.health().lease_losses, there.health().lease_losses);
    ground.lose_everything();
    let told = async || {
        while here.health().lease_losses == before.0 || there.health().lease_losses == before.1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(LONG, told()).await.is_ok(), "both leases were lost with the store");
    until(&mut members, "both once more", |m| is(m, &node("a", 3)) && is(m, &node("b", 1))).await;
}

#[tokio::test]
async fn the_simulated_registry_keeps_to_the_cases() {
    hold(Simulated::default()).await;
}

#[tokio::test]
async fn the_registry_over_etcd_keeps_to_the_cases() {
    hold(Real(Etcd::start())).await;
}
