//! Nodes with certificates: what they announce must stand in there.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use baton_trust::{
    TlsConfig,
    authority::{Authority, Bearer},
};

use super::{fake::Act, *};

fn trust(authority: &Authority, role: Role) -> Trust {
    let valid = SystemTime::now() - LONG..SystemTime::now() + Duration::from_secs(3600);
    let issued = authority.issue(&Bearer::Nodes([role].into()), &["127.0.0.1".to_owned()], valid).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| dir.path().join(name));
    fs::write(&ca, authority.itself().cert).unwrap();
    fs::write(&cert, issued.cert).unwrap();
    fs::write(&key, issued.key).unwrap();
    Trust::load(&TlsConfig { ca, cert, key, name: None }, "test", &[role].into()).unwrap()
}

#[tokio::test]
async fn a_node_has_no_role_that_it_is_not_certified_for() {
    let valid = SystemTime::now() - LONG..SystemTime::now() + Duration::from_secs(7200);
    let authority = Authority::new("test", valid).unwrap();
    let certified = trust(&authority, Role::Decode);
    let mut cluster = Cluster::empty(config(), trust(&authority, Role::Coordinator));
    // One that is what it says, and one that is not.
    for info in [node_info("honest", &[Role::Decode]), node_info("liar", &[Role::Prefill])] {
        let node = FakeNode::certified(info, &certified).await;
        cluster.registrations.push(cluster.registry.register(node.info()));
        cluster.nodes.push(node);
    }
    let health = |healths: &[(String, Health)], name: &str| {
        healths.iter().find(|(node, _)| node == name).map(|(_, health)| *health)
    };
    cluster
        .until("the lie is seen", |nodes| {
            health(nodes, "honest") == Some(Health::Ready) && health(nodes, "liar") == Some(Health::Lost)
        })
        .await;
    cluster.nodes[0].script([accepted(), bill(0), finished(0)].map(Act::Send));
    assert_eq!(cluster.events(request(1)).await, [accepted(), bill(0), finished(0)]);

    // A role that it takes later is looked at in the same way.
    let more = node_info("honest", &[Role::Decode, Role::Prefill]);
    cluster.nodes[0].set_info(NodeInfo { control_addr: cluster.nodes[0].info().control_addr, ..more });
    cluster.until("the role is seen", |nodes| health(nodes, "honest") == Some(Health::Lost)).await;
}
