//! Against a real etcd.

mod process;
mod proxy;

use std::time::Duration;

use baton_protocol::{Incarnation, KvDtype, KvShape, NodeInfo, NodeState, Role};
use tokio::{sync::watch, time::timeout};

use self::{process::Etcd, proxy::Proxy};
use super::*;

/// A node for tests.
pub(crate) fn node(name: &str, incarnation: u64) -> NodeInfo {
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

/// Long enough for a busy machine; tests wait for states, not for times.
const LONG: Duration = Duration::from_secs(60);

fn start(endpoint: &str) -> EtcdRegistry {
    let config = EtcdConfig { lease_seconds: 2, ..EtcdConfig::new(vec![endpoint.to_owned()]) };
    EtcdRegistry::start("test", config).unwrap()
}

async fn until(members: &mut watch::Receiver<Members>, what: &str, is_so: impl FnMut(&Members) -> bool) {
    let found = timeout(LONG, members.wait_for(is_so)).await.is_ok();
    assert!(found, "waited in vain: {what}; members are {:?}", members.borrow().keys());
}

async fn until_health(registry: &EtcdRegistry, what: &str, is_so: impl Fn(RegistryHealth) -> bool) {
    let waited = timeout(LONG, async {
        while !is_so(registry.health()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain: {what}; health is {:?}", registry.health());
}

async fn lease_of(client: &mut Client, name: &str) -> i64 {
    let answer = client.get(format!("/test/v1/nodes/{name}"), None).await.unwrap();
    answer.kvs().first().map_or(0, etcd_client::KeyValue::lease)
}

#[tokio::test]
async fn nodes_are_seen_changed_and_gone() {
    let etcd = Etcd::start();
    let (here, there) = (start(&etcd.endpoint()), start(&etcd.endpoint()));
    let mut members = there.watch();
    let registration = here.register(node("a", 1));
    until(&mut members, "registered", |m| m.get(&"a".into()) == Some(&node("a", 1))).await;

    let draining = NodeInfo { state: NodeState::Draining, ..node("a", 1) };
    registration.update(draining.clone());
    until(&mut members, "updated", |m| m.get(&"a".into()) == Some(&draining)).await;

    assert!(registration.withdraw(LONG).await);
    until(&mut members, "withdrawn", Members::is_empty).await;
}

#[tokio::test]
async fn shutdown_revokes_the_lease() {
    let etcd = Etcd::start();
    let there = start(&etcd.endpoint());
    // An hour: only a revoked lease can take the node away in time.
    let config = EtcdConfig { lease_seconds: 3600, ..EtcdConfig::new(vec![etcd.endpoint()]) };
    let here = EtcdRegistry::start("test", config).unwrap();
    let mut members = there.watch();
    let _held = here.register(node("a", 1));
    until(&mut members, "registered", |m| m.len() == 1).await;
    here.shutdown().await;
    until(&mut members, "left", Members::is_empty).await;
}

#[tokio::test]
async fn one_process_has_the_office_and_the_next_gets_it() {
    let etcd = Etcd::start();
    let (one, other) = (start(&etcd.endpoint()), start(&etcd.endpoint()));
    let (mut first, mut second) = (one.stand(), other.stand());
    let either = async {
        tokio::select! {
            held = first.wait_for(|held| *held) => held.map(drop),
            held = second.wait_for(|held| *held) => held.map(drop),
        }
    };
    timeout(LONG, either).await.unwrap().unwrap();
    // Several looks of both; what is written later is written after them.
    for name in ["a", "b", "c"] {
        for registry in [&one, &other] {
            timeout(LONG, registry.register(node(name, 1)).published()).await.unwrap();
            assert!(*first.borrow() != *second.borrow(), "one of them has it");
        }
    }
    let (holder, mut lost, mut next) =
        if *first.borrow() { (one, first, second) } else { (other, second, first) };
    holder.shutdown().await;
    timeout(LONG, lost.wait_for(|held| !*held)).await.unwrap().unwrap();
    timeout(LONG, next.wait_for(|held| *held)).await.unwrap().unwrap();
}

#[tokio::test]
async fn members_are_kept_while_etcd_is_stopped() {
    let etcd = Etcd::start();
    let registry = start(&etcd.endpoint());
    let mut members = registry.watch();
    let _held = registry.register(node("a", 1));
    until(&mut members, "registered", |m| m.len() == 1).await;
    etcd.signal("STOP");
    until_health(&registry, "noticed", |health| !health.connected).await;
    assert_eq!(members.borrow().len(), 1);
    etcd.signal("CONT");
    until_health(&registry, "found again", |health| health.connected).await;
    until(&mut members, "still a member", |m| m.len() == 1).await;
}

#[tokio::test]
async fn nodes_register_again_after_etcd_lost_everything() {
    let mut etcd = Etcd::start();
    let registry = start(&etcd.endpoint());
    let mut members = registry.watch();
    let mut held = registry.register(node("a", 1));
    held.published().await;
    until(&mut members, "registered", |m| m.len() == 1).await;
    etcd.restart_empty();
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let registered = timeout(LONG, async {
        while lease_of(&mut client, "a").await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(registered.await.is_ok(), "not registered again");
    assert!(registry.health().lease_losses > 0);
    until(&mut members, "the same incarnation", |m| m.get(&"a".into()) == Some(&node("a", 1))).await;
}

#[tokio::test]
async fn a_revoked_lease_is_taken_again() {
    let etcd = Etcd::start();
    let registry = start(&etcd.endpoint());
    let mut members = registry.watch();
    let _held = registry.register(node("a", 1));
    until(&mut members, "registered", |m| m.len() == 1).await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let lease = lease_of(&mut client, "a").await;
    client.lease_revoke(lease).await.unwrap();
    until(&mut members, "gone", Members::is_empty).await;
    until(&mut members, "back", |m| m.get(&"a".into()) == Some(&node("a", 1))).await;
    assert_ne!(lease_of(&mut client, "a").await, lease);
    assert_eq!(registry.health().lease_losses, 1);
}

#[tokio::test]
async fn a_deleted_key_is_written_again() {
    let etcd = Etcd::start();
    let registry = start(&etcd.endpoint());
    let mut members = registry.watch();
    let _held = registry.register(node("a", 1));
    until(&mut members, "registered", |m| m.len() == 1).await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    client.delete("/test/v1/nodes/a", None).await.unwrap();
    until(&mut members, "gone", Members::is_empty).await;
    until(&mut members, "back", |m| m.len() == 1).await;
    assert_eq!(registry.health().lease_losses, 0);
}

#[tokio::test]
async fn bad_values_are_skipped_and_counted() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    client.put("/test/v1/nodes/before", "{\"id\":", None).await.unwrap();
    let registry = start(&etcd.endpoint());
    let mut members = registry.watch();
    until_health(&registry, "listed", |health| health.bad_values == 1).await;
    client.put("/test/v1/nodes/after", vec![0xff; 9], None).await.unwrap();
    client.put("/test/v1/nodes/good", serde_json::to_vec(&node("good", 1)).unwrap(), None).await.unwrap();
    until(&mut members, "the good one", |m| m.contains_key(&"good".into())).await;
    assert_eq!(members.borrow().len(), 1);
    assert_eq!(registry.health().bad_values, 2);
}

#[tokio::test]
async fn deletes_are_seen_after_a_cut_watch_and_compaction() {
    let etcd = Etcd::start();
    let mut proxy = Proxy::start(etcd.address());
    let registry = start(&proxy.endpoint());
    let mut members = registry.watch();
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    for name in ["a", "b"] {
        let value = serde_json::to_vec(&node(name, 1)).unwrap();
        client.put(format!("/test/v1/nodes/{name}"), value, None).await.unwrap();
    }
    until(&mut members, "both", |m| m.len() == 2).await;

    proxy.cut().await;
    until_health(&registry, "cut", |health| !health.connected).await;
    client.delete("/test/v1/nodes/a", None).await.unwrap();
    let revision = client.put("/test/other", "", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    assert_eq!(members.borrow().len(), 2, "members are kept while the store is away");
    proxy.mend();
    until(&mut members, "the delete", |m| m.len() == 1 && m.contains_key(&"b".into())).await;
}

#[tokio::test]
async fn a_compacted_watch_ends_for_a_new_list() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let mut revision = 0;
    for _ in 0..3 {
        revision = client.put("/test/v1/nodes/x", "", None).await.unwrap().header().unwrap().revision();
    }
    client.compact(revision, None).await.unwrap();
    let store = Store {
        config: EtcdConfig::new(vec![etcd.endpoint()]),
        tls: None,
        prefix: "/test/v1/nodes/".into(),
        office: "/test/v1/office".into(),
        counters: Arc::default(),
        stop: CancellationToken::new(),
    };
    let (tell, _members) = watch::channel(Members::new());
    let mut follow = follow::Follow::new(store.clone(), tell);
    let relist = tokio::time::Instant::now() + LONG;
    timeout(LONG / 2, follow.watch(&mut client, 1, relist)).await.unwrap().unwrap();
    assert_eq!(store.counters.resyncs.load(Ordering::Relaxed), 1);
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let start = |endpoints: &[&str], cluster| {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        EtcdRegistry::start(cluster, EtcdConfig::new(endpoints)).unwrap_err()
    };
    assert!(matches!(start(&[], "c"), RegistryError::NoEndpoints));
    assert!(matches!(start(&["https://host:1"], "c"), RegistryError::BadEndpoint { .. }));
    assert!(matches!(start(&["http://host"], "c"), RegistryError::BadEndpoint { .. }));
    assert!(matches!(start(&["http://host:1"], "a/b"), RegistryError::BadCluster { .. }));
    let file = || Some("no-such-file".into());
    let config = || EtcdConfig { ca: file(), ..EtcdConfig::new(vec!["https://host:1".to_owned()]) };
    let start = |config| EtcdRegistry::start("c", config).unwrap_err();
    let plain = EtcdConfig { endpoints: vec!["http://host:1".to_owned()], ..config() };
    assert!(matches!(start(plain), RegistryError::BadEndpoint { .. }));
    let half = EtcdConfig { cert: file(), ..config() };
    assert!(matches!(start(half), RegistryError::HalfCertificate));
    assert!(matches!(start(config()), RegistryError::Certificate { .. }));
}
