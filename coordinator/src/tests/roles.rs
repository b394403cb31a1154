//! Nodes whose roles are changed.

use baton_protocol::{ErrorCode, Failure};
use futures::future::join_all;

use super::{fake::Act, *};
use crate::SteerError;

async fn cluster() -> Cluster {
    let decode = ["d1", "d2"].map(|name| node_info(name, &[Role::Decode]));
    let infos = decode.into_iter().chain([node_info("p1", &[Role::Prefill])]);
    Cluster::start(config(), infos.collect()).await
}

impl Cluster {
    async fn set_role(&self, node: &str, role: Role, force: bool) -> Result<(), SteerError> {
        self.coordinator.set_roles(&node.into(), &BTreeSet::from([role]), force).await
    }
}

#[tokio::test]
async fn requests_go_by_the_new_role_at_once() {
    let cluster = cluster().await;
    cluster.set_role("d2", Role::Prefill, false).await.unwrap();
    for _ in 0..4 {
        cluster.nodes[0].script([accepted(), finished(0)].map(Act::Send));
        cluster.events(request(1)).await;
    }
    assert!(cluster.nodes[1].opens().is_empty());
    for open in cluster.nodes[0].opens() {
        let mut named: Vec<_> = open.candidates.iter().map(|candidate| candidate.node.as_str()).collect();
        named.sort_unstable();
        assert_eq!(named, ["d2", "p1"]);
    }
}

#[tokio::test]
async fn the_last_of_a_role_keeps_it_unless_forced() {
    let cluster = cluster().await;
    let last = cluster.set_role("p1", Role::Decode, false).await.unwrap_err();
    assert!(matches!(&last, SteerError::Last { role: Role::Prefill, .. }), "{last}");
    // Two that are each other's last do not both go.
    let both = ["d1", "d2"].map(|node| cluster.set_role(node, Role::Prefill, false));
    let outcomes = join_all(both).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let left = if outcomes[0].is_ok() { "d2" } else { "d1" };
    cluster.set_role(left, Role::Prefill, true).await.unwrap();
    assert!(!cluster.coordinator.status().ready);
    let unknown = cluster.set_role("d3", Role::Prefill, false).await.unwrap_err();
    assert!(matches!(unknown, SteerError::Unknown { .. }));
}

#[tokio::test]
async fn two_coordinators_leave_a_role_to_one_node_at_least() {
    let cluster = cluster().await;
    let (other, _tasks) = Coordinator::new(config(), Arc::new(cluster.registry.clone()), Trust::none());
    let has_all = || other.status().nodes.iter().filter(|node| node.health == Health::Ready).count() == 3;
    cluster.until("the other one knows all nodes", |_| has_all()).await;
    for _ in 0..20 {
        let outcomes =
            join_all([(&cluster.coordinator, "d1"), (&other, "d2")].map(|(one, node)| async move {
                one.set_roles(&node.into(), &BTreeSet::from([Role::Prefill]), false).await
            }))
            .await;
        let decode = || cluster.nodes.iter().filter(|node| node.info().roles.contains(&Role::Decode)).count();
        assert!(decode() >= 1, "{outcomes:?}");
        assert!(outcomes.iter().any(Result::is_err), "{outcomes:?}");
        // Back, by whoever knows of the change by now.
        for (index, name) in ["d1", "d2"].into_iter().enumerate() {
            while !cluster.nodes[index].info().roles.contains(&Role::Decode) {
                if cluster.set_role(name, Role::Decode, true).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        let knows = |one: &Coordinator| {
            one.status().nodes.iter().filter(|node| node.roles.contains(&Role::Decode)).count() == 2
        };
        cluster.until("both know it", |_| knows(&cluster.coordinator) && knows(&other)).await;
    }
}

#[tokio::test]
async fn a_change_that_others_made_first_is_seen_and_not_overwritten() {
    let cluster = cluster().await;
    let theirs = NodeInfo { epoch: 5, ..cluster.nodes[1].info() };
    cluster.nodes[1].set_info(theirs);
    // Until a check has seen epoch 5 the change is made for another one.
    let epoch = || cluster.coordinator.status().nodes.iter().find(|node| node.id.0 == "d2").unwrap().epoch;
    if let Err(error) = cluster.set_role("d2", Role::Prefill, false).await {
        assert!(matches!(error, SteerError::Refused { .. }), "{error}");
        cluster.until("their epoch", |_| epoch() == 5).await;
        cluster.set_role("d2", Role::Prefill, false).await.unwrap();
    }
    assert_eq!(epoch(), 6);
    // What was said before, and comes late, is not believed.
    cluster.nodes[1].set_info(NodeInfo { epoch: 5, ..node_info("d2", &[Role::Decode]) });
    let described = cluster.nodes[1].described();
    cluster.until("two more checks", |_| cluster.nodes[1].described() >= described + 2).await;
    assert_eq!(epoch(), 6);
}

#[tokio::test]
async fn what_a_moved_node_refuses_counts_against_no_budget() {
    let cluster = Cluster::decode(&["a", "b"]).await;
    let moved = Event::Failed(Failure::new(ErrorCode::Moved, "the node has another role"));
    for _ in 0..200 {
        cluster.nodes[0].script([Act::Send(moved.clone())]);
        cluster.nodes[1].script([accepted(), finished(0)].map(Act::Send));
    }
    let requests = (0..200).map(|id| Request { id: RequestId(id), ..request(1) });
    for events in join_all(requests.map(|request| cluster.events(request))).await {
        assert_eq!(events, [accepted(), finished(0)]);
    }
    assert!(cluster.nodes[0].opens().len() > 60);
}
