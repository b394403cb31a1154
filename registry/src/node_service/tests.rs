use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
};

use baton_protocol::{
    BlockHash, Incarnation, KvDtype, KvShape, NodeId, NodeState, Role, wire::node_client::NodeClient,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, transport::Server};

use super::*;

fn info() -> NodeInfo {
    NodeInfo {
        id: NodeId::from("decode-1"),
        incarnation: Incarnation(7),
        roles: BTreeSet::from([Role::Decode]),
        epoch: 3,
        control_addr: "127.0.0.1:1".to_owned(),
        model: "mock".to_owned(),
        model_fingerprint: "f".to_owned(),
        text_digest: "d".to_owned(),
        context_tokens: 1000,
        kv: KvShape { layers: 2, kv_heads: 1, head_dim: 4, dtype: KvDtype::F32, page_tokens: 16 },
        pages: 10,
        state: NodeState::Ready,
    }
}

/// A cache that holds what was added by changes 1 to 10,000, and has forgotten those before 6,000.
fn prefixes(after: Option<u64>) -> PrefixChanges {
    let after = after.map_or(0, |after| after.clamp(6_000, 10_000));
    let added = (after..10_000).map(|change| BlockHash(u128::from(change).to_be_bytes())).collect();
    PrefixChanges { after, number: 10_000, added, removed: Vec::new() }
}

/// A served node; the server ends when the set is dropped or the token cancelled.
async fn served(text: Bytes) -> (NodeClient<tonic::transport::Channel>, CancellationToken, JoinSet<()>) {
    let calls = AtomicU32::new(0);
    let load = move || LoadReport {
        running_sequences: calls.fetch_add(1, Ordering::Relaxed),
        ..LoadReport::default()
    };
    let shutdown = CancellationToken::new();
    let standing = Arc::new(Mutex::new(info()));
    let describe = {
        let standing = Arc::clone(&standing);
        move || standing.lock().clone()
    };
    let drain = {
        let standing = Arc::clone(&standing);
        move |drain| {
            standing.lock().state = if drain { NodeState::Draining } else { NodeState::Ready };
            true
        }
    };
    let set_roles = move |based_on, roles| {
        let mut standing = standing.lock();
        let now = standing.epoch;
        if now != based_on {
            return Err(RolesError::Stale { based_on, now });
        }
        *standing = NodeInfo { roles, epoch: now + 1, ..standing.clone() };
        Ok(())
    };
    let words = Words {
        describe: Arc::new(describe),
        load: Arc::new(load),
        prefixes: Arc::new(prefixes),
        drain: Arc::new(drain),
        set_roles: Arc::new(set_roles),
        forget: Arc::new(|| FORGOTTEN.with(|forgotten| forgotten.set(true))),
    };
    let node = NodeService::new(
        words,
        [("empty".to_owned(), Bytes::new()), ("d".to_owned(), text)],
        shutdown.clone(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    let stop = shutdown.clone().cancelled_owned();
    server.spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        Server::builder()
            .add_service(node.service())
            .serve_with_incoming_shutdown(incoming, stop)
            .await
            .unwrap();
    });
    (NodeClient::connect(format!("http://{addr}")).await.unwrap(), shutdown, server)
}

#[tokio::test]
async fn a_description_is_the_node_info() {
    let (mut client, _shutdown, _server) = served(Bytes::new()).await;
    let description = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(serde_json::from_str::<NodeInfo>(&description.info_json).unwrap(), info());
}

#[tokio::test]
async fn model_text_comes_whole_in_bounded_chunks_or_not_at_all() {
    let text: Bytes = (0..TEXT_CHUNK_BYTES * 2 + 5).map(|i| (i % 251) as u8).collect();
    let (mut client, _shutdown, _server) = served(text.clone()).await;
    let ask = |digest: &str| ModelTextRequest { digest: digest.to_owned() };
    let mut chunks = client.model_text(ask("d")).await.unwrap().into_inner();
    let (mut bytes, mut sizes) = (Vec::new(), Vec::new());
    while let Some(chunk) = chunks.message().await.unwrap() {
        sizes.push(chunk.data.len());
        bytes.extend_from_slice(&chunk.data);
    }
    assert_eq!(sizes, [TEXT_CHUNK_BYTES, TEXT_CHUNK_BYTES, 5]);
    assert_eq!(bytes, text);
    let mut none = client.model_text(ask("empty")).await.unwrap().into_inner();
    assert!(none.message().await.unwrap().is_none());
    assert_eq!(client.model_text(ask("other")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn load_is_asked_anew_each_time_and_its_stream_ends_with_the_node() {
    let (mut client, shutdown, mut server) = served(Bytes::new()).await;
    // An interval of 0 is raised to the least allowed, not refused and not a busy loop.
    let mut reports = client.load(LoadRequest { interval_ms: 0 }).await.unwrap().into_inner();
    for expected in 0..3 {
        let report = reports.message().await.unwrap().unwrap();
        assert_eq!(report.running_sequences, expected);
    }
    shutdown.cancel();
    while reports.message().await.unwrap().is_some() {}
    // The server itself can stop although a load stream was open.
    drop(client);
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn prefixes_come_whole_or_from_a_number_on() {
    let (mut client, shutdown, _server) = served(Bytes::new()).await;
    let ask = |after| PrefixesRequest { incarnation: 7, after, interval_ms: 0 };
    let mut parts = client.prefixes(ask(0)).await.unwrap().into_inner();
    let (mut added, mut number, mut whole) = (Vec::new(), 0, Vec::new());
    while number < 10_000 {
        let part = parts.message().await.unwrap().unwrap();
        whole.push(part.whole);
        let changes = PrefixChanges::try_from(&part).unwrap();
        assert_eq!(changes.after, number);
        number = changes.number;
        added.extend(changes.added);
    }
    assert_eq!(added, prefixes(None).added);
    assert_eq!(whole, [true, false, false], "parts are bounded and begin anew once");

    // Forgotten changes show: the part follows another number than the known one.
    let mut late = client.prefixes(ask(17)).await.unwrap().into_inner();
    let part = late.message().await.unwrap().unwrap();
    assert_eq!((part.after, part.number, part.whole), (6_000, 10_000, false));

    let other = PrefixesRequest { incarnation: 8, ..ask(0) };
    assert_eq!(client.prefixes(other).await.unwrap_err().code(), Code::FailedPrecondition);
    // Nothing more has changed: the stream says nothing until it ends with the node.
    shutdown.cancel();
    assert!(parts.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_node_drains_and_takes_work_again_if_it_is_the_one_that_is_meant() {
    let (mut client, _shutdown, _server) = served(Bytes::new()).await;
    let state = |description: NodeDescription| {
        serde_json::from_str::<NodeInfo>(&description.info_json).unwrap().state
    };
    for (drain, expected) in [(true, NodeState::Draining), (false, NodeState::Ready)] {
        let answer = client.drain(DrainRequest { incarnation: 7, drain }).await.unwrap();
        assert_eq!(state(answer.into_inner()), expected);
        let description = client.describe(DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(state(description), expected);
    }
    let other = client.drain(DrainRequest { incarnation: 8, drain: true }).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn roles_are_changed_from_the_epoch_that_is_known() {
    let (mut client, _shutdown, _server) = served(Bytes::new()).await;
    let ask = |epoch, role: &str| RolesRequest { incarnation: 7, epoch, roles: vec![role.to_owned()] };
    let description = client.set_roles(ask(3, "prefill")).await.unwrap().into_inner();
    let now = serde_json::from_str::<NodeInfo>(&description.info_json).unwrap();
    assert_eq!((now.roles, now.epoch), (BTreeSet::from([Role::Prefill]), 4));
    let stale = client.set_roles(ask(3, "decode")).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition);
    assert!(stale.message().contains("of epoch 4, not 3"), "{stale}");
    let other = client.set_roles(RolesRequest { incarnation: 8, ..ask(4, "decode") }).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    assert_eq!(client.set_roles(ask(4, "router")).await.unwrap_err().code(), Code::InvalidArgument);
}

thread_local! {
    static FORGOTTEN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[tokio::test]
async fn a_node_forgets_if_it_is_the_one_that_is_meant() {
    let (mut client, _shutdown, _server) = served(Bytes::new()).await;
    let other = client.forget(ForgetRequest { incarnation: 8 }).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    assert!(!FORGOTTEN.with(std::cell::Cell::get));
    client.forget(ForgetRequest { incarnation: 7 }).await.unwrap();
    assert!(FORGOTTEN.with(std::cell::Cell::get));
}
