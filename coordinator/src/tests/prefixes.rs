//! What nodes say of their prefix caches, and who gets a request then.

use baton_protocol::{BlockHash, NodeId, PrefixChanges, chain, wire};

use super::{fake::Act, *};

/// Two pages and a bit.
fn prompt() -> Request {
    Request { tokens: (0..40).collect(), ..request(1) }
}

fn blocks() -> Vec<BlockHash> {
    chain("", 16, &prompt().tokens)
}

/// A part of a stream: the numbers it spans, and the blocks added.
fn part(after: u64, number: u64, added: &[BlockHash]) -> wire::PrefixChanges {
    let changes = PrefixChanges { after, number, added: added.to_vec(), removed: Vec::new() };
    wire::PrefixChanges::parts(&changes, after == 0).remove(0)
}

impl Cluster {
    /// Decode nodes whose caches say so, one script a stream.
    async fn caching(scripts: &[(&str, &[Vec<wire::PrefixChanges>])]) -> Self {
        let config =
            CoordinatorConfig { policy: crate::PolicyName::PrefixAware, prefix_interval_ms: 1, ..config() };
        let mut cluster = Self::empty(config, Trust::none());
        for (name, streams) in scripts {
            let node = FakeNode::start(node_info(name, &[Role::Decode])).await;
            streams.iter().for_each(|parts| node.script_prefixes(parts.clone()));
            cluster.registrations.push(cluster.registry.register(node.info()));
            cluster.nodes.push(node);
        }
        let ready = |nodes: &[(String, Health)]| nodes.iter().all(|(_, health)| *health == Health::Ready);
        cluster.until("all nodes answered", |nodes| nodes.len() == scripts.len() && ready(nodes)).await;
        cluster
    }

    async fn until_indexed(&self, pages: u64) {
        let stats = || self.coordinator.shared.fleet.prefixes().stats();
        self.until(&format!("{pages} pages known"), |_| stats().pages == pages).await;
    }

    /// Which node gets the prompt, a few times over.
    async fn taker(&self) -> String {
        let opens = |node: &FakeNode| node.opens().len();
        let before: Vec<_> = self.nodes.iter().map(opens).collect();
        for _ in 0..3 {
            self.nodes.iter().for_each(|node| node.script([accepted(), finished(0)].map(Act::Send)));
            self.events(prompt()).await;
        }
        let takers = self.nodes.iter().zip(&before).filter(|(node, before)| opens(node) > **before);
        let names: Vec<_> = takers.map(|(node, _)| node.info().id.0).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        names[0].clone()
    }
}

#[tokio::test]
async fn the_node_that_holds_the_prompt_gets_it() {
    let one = [vec![part(0, 1, &blocks()[..1])]];
    let both = [vec![part(0, 1, &blocks()[..1]), part(1, 2, &blocks()[1..])]];
    let cluster = Cluster::caching(&[("a", &one), ("b", &both), ("c", &[])]).await;
    cluster.until_indexed(3).await;
    assert_eq!(cluster.taker().await, "b");
}

#[tokio::test]
async fn a_gap_is_repaired_by_asking_for_everything() {
    let other = chain("", 16, &[7; 32]);
    // Change 3 is missed: it took away what change 1 added, and who goes on after 3 does not say so.
    let gap = vec![part(0, 2, &[other[0], other[1]]), part(3, 4, &blocks()[1..])];
    let whole = vec![part(0, 4, &blocks())];
    let cluster = Cluster::caching(&[("a", &[gap, whole]), ("b", &[])]).await;
    cluster.until("asked again", |_| cluster.nodes[0].asked_after() == [0, 0]).await;
    cluster.until_indexed(2).await;
    assert_eq!(cluster.taker().await, "a");
    let index = cluster.coordinator.shared.fleet.prefixes();
    let node = &cluster.coordinator.shared.fleet.nodes()[0];
    assert_eq!(index.held(&other).pages(node.prefixes()), 0, "what was known before the gap is forgotten");
    let mut registry = prometheus_client::registry::Registry::default();
    cluster.coordinator.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("prefix_index_gaps_total 1\n"), "{text}");
    assert!(text.contains("prefix_index_pages 2\n"), "{text}");
}

#[tokio::test]
async fn a_stream_that_broke_goes_on_at_its_number() {
    let first = vec![part(0, 7, &blocks()[..1])];
    let second = vec![part(7, 8, &blocks()[1..])];
    let cluster = Cluster::caching(&[("a", &[first, second])]).await;
    cluster.until_indexed(1).await;
    cluster.nodes[0].cut_prefixes();
    cluster.until_indexed(2).await;
    assert_eq!(cluster.nodes[0].asked_after(), [0, 7]);
}

#[tokio::test]
async fn what_a_part_of_a_snapshot_said_is_said_again_after_a_break() {
    let parts = wire::PrefixChanges::parts(
        &PrefixChanges { after: 0, number: 5000, added: chain("", 1, &[7; 5000]), removed: vec![] },
        true,
    );
    let cluster = Cluster::caching(&[("a", &[parts[..1].to_vec(), parts.clone()])]).await;
    cluster.until_indexed(4096).await;
    cluster.nodes[0].cut_prefixes();
    cluster.until_indexed(5000).await;
    assert_eq!(cluster.nodes[0].asked_after(), [0, 0]);
}

#[tokio::test]
async fn a_new_incarnation_has_nothing_until_it_says_so() {
    let cluster = Cluster::caching(&[("a", &[vec![part(0, 2, &blocks())]])]).await;
    cluster.until_indexed(2).await;
    let again =
        FakeNode::start(NodeInfo { incarnation: Incarnation(2), ..node_info("a", &[Role::Decode]) }).await;
    again.script_prefixes(vec![part(0, 9, &blocks()[..1])]);
    let _registration = cluster.registry.register(again.info());
    cluster.until_indexed(1).await;
    assert_eq!(again.asked_after(), [0]);
}

#[tokio::test]
async fn a_node_that_left_holds_nothing() {
    let mut cluster = Cluster::caching(&[("a", &[vec![part(0, 2, &blocks())]])]).await;
    cluster.until_indexed(2).await;
    cluster.nodes[0].script([Act::Send(accepted()), Act::Hang]);
    // A request that still hangs on the node does not keep its pages.
    let _answer = cluster.coordinator.dispatch(prompt(), Wishes::default()).await.unwrap();
    cluster.registrations.clear();
    cluster.nodes[0].set_silent(true);
    cluster.until_indexed(0).await;
}

#[tokio::test]
async fn prompts_that_are_mostly_cached_are_prefilled_where_they_are() {
    let config = CoordinatorConfig {
        policy: crate::PolicyName::PrefixAware,
        local_prefill_below_tokens: 16,
        ..config()
    };
    let infos = vec![node_info("d", &[Role::Decode]), node_info("p", &[Role::Prefill])];
    let mut cluster = Cluster::empty(config, Trust::none());
    for info in infos {
        let node = FakeNode::start(info).await;
        node.script_prefixes(vec![part(0, 2, &blocks())]);
        cluster.registrations.push(cluster.registry.register(node.info()));
        cluster.nodes.push(node);
    }
    cluster.until_indexed(4).await;
    let ready = |nodes: &[(String, Health)]| nodes.iter().all(|(_, health)| *health == Health::Ready);
    cluster.until("both answered", ready).await;
    let other = Request { tokens: vec![9; 40], ..request(1) };
    for request in [prompt(), other] {
        cluster.nodes[0].script([accepted(), finished(0)].map(Act::Send));
        cluster.events(request).await;
    }
    let candidates: Vec<_> = cluster.nodes[0].opens().iter().map(|open| open.candidates.len()).collect();
    assert_eq!(candidates, [0, 1]);
}

#[tokio::test]
async fn every_node_forgets_its_prefixes_when_asked() {
    let cluster = Cluster::decode(&["a", "b"]).await;
    let mut who = cluster.coordinator.forget_prefixes().await.unwrap();
    who.sort();
    assert_eq!(who, ["a", "b"].map(NodeId::from));
    assert_eq!([0, 1].map(|node| cluster.nodes[node].forgot()), [1, 1]);
}
