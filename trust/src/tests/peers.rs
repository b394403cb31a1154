//! Callers and servers that are not who they should be.

use std::{collections::BTreeSet, net::SocketAddr};

use baton_protocol::wire::{
    DescribeRequest, DrainRequest, ForgetRequest, LoadReport, LoadRequest, ModelTextChunk, ModelTextRequest,
    NodeDescription, PrefixChanges, PrefixesRequest, RolesRequest,
    node_client::NodeClient,
    node_server::{Node, NodeServer},
};
use futures::stream::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::{
    Code, Request, Response, Status,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Server},
};

use super::*;

struct Described;

#[tonic::async_trait]
impl Node for Described {
    type LoadStream = Empty<Result<LoadReport, Status>>;
    type PrefixesStream = Empty<Result<PrefixChanges, Status>>;
    type ModelTextStream = Empty<Result<ModelTextChunk, Status>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<NodeDescription>, Status> {
        Ok(Response::new(NodeDescription { info_json: "me".to_owned() }))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<NodeDescription>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_roles(&self, _: Request<RolesRequest>) -> Result<Response<NodeDescription>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn forget(&self, _: Request<ForgetRequest>) -> Result<Response<NodeDescription>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn load(&self, _: Request<LoadRequest>) -> Result<Response<Self::LoadStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn prefixes(&self, _: Request<PrefixesRequest>) -> Result<Response<Self::PrefixesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn model_text(
        &self,
        _: Request<ModelTextRequest>,
    ) -> Result<Response<Self::ModelTextStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A node that only coordinators may describe.
pub fn serve(trust: &Trust) -> (SocketAddr, JoinSet<()>) {
    let listener = trust.gate().listen(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.local_addr();
    let guarded = InterceptedService::new(NodeServer::new(Described), trust.guard(&[Role::Coordinator]));
    let (router, callers) = (Server::builder().add_service(guarded), trust.callers(listener));
    let mut server = JoinSet::new();
    server.spawn(async move { router.serve_with_incoming(callers).await.unwrap() });
    (addr, server)
}

pub async fn describe(channel: Channel) -> Result<String, Status> {
    let mut client = NodeClient::new(channel);
    Ok(client.describe(DescribeRequest {}).await?.into_inner().info_json)
}

/// No answer of a service: the connection did not stand, or was cut off.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// The coordinator that should be let in.
fn coordinator(authority: &Authority) -> Trust {
    Files::of(authority, &nodes(&[Role::Coordinator])).trusted_blindly()
}

const WORKER: [Role; 1] = [Role::Decode];

#[tokio::test]
async fn only_a_coordinator_of_the_cluster_is_let_in() {
    let mut authority = authority();
    let (addr, _server) = serve(&Files::of(&authority, &nodes(&WORKER)).trusted_blindly());
    let worker = BTreeSet::from(WORKER);
    let call = |trust: Trust| describe(trust.callee(&addr.to_string(), &worker).unwrap().connect_lazy());
    assert_eq!(call(coordinator(&authority)).await.unwrap(), "me");

    // The authority is right, the role is not.
    for bearer in [nodes(&[Role::Decode]), nodes(&[Role::Prefill]), Bearer::Etcd] {
        let refused = call(Files::of(&authority, &bearer).trusted_blindly()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{bearer:?}: {refused}");
    }
    // Another authority, whose servers the caller would trust besides ours.
    let ca = Certificate::from_pem(authority.itself().cert);
    let ours = |tls: ClientTlsConfig| {
        let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap();
        endpoint.tls_config(tls.ca_certificate(ca.clone())).unwrap().connect_lazy()
    };
    let stranger = self::authority().issue(&nodes(&[Role::Coordinator]), &here(), now()).unwrap();
    let expired = authority.issue(&nodes(&[Role::Coordinator]), &here(), past()).unwrap();
    let right = authority.issue(&nodes(&[Role::Coordinator]), &here(), now()).unwrap();
    let with = |Issued { cert, key }| {
        ours(ClientTlsConfig::new().identity(tonic::transport::Identity::from_pem(cert, key)))
    };
    assert_eq!(describe(with(right)).await.unwrap(), "me");
    for nobody in [with(stranger), with(expired), ours(ClientTlsConfig::new())] {
        let refused = describe(nobody).await.unwrap_err();
        assert!(is_broken(&refused), "{refused}");
    }
    // Another cluster's coordinator, of the same authority.
    authority.cluster = "other".to_owned();
    let refused = call(coordinator(&authority)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Nothing in the open.
    let plain = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
    assert!(describe(plain).await.is_err());
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said).await;
    // At most a TLS alert: fatal, and why.
    assert!(said.is_empty() || (said[0] == 21 && said.len() == 7), "{said:?}");
}

#[tokio::test]
async fn only_the_node_that_is_meant_is_spoken_to() {
    let authority = authority();
    let caller = coordinator(&authority);
    let both = BTreeSet::from([Role::Prefill, Role::Decode]);
    let issue = |bearer: &Bearer, names: &[String], valid| {
        Files::new(&authority, &authority.issue(bearer, names, valid).unwrap())
    };
    let right = issue(&nodes(&[Role::Prefill, Role::Decode]), &here(), now());
    let (addr, _server) = serve(&right.trusted_blindly());
    let callee =
        |trust: &Trust, addr: SocketAddr| trust.callee(&addr.to_string(), &both).unwrap().connect_lazy();
    assert_eq!(describe(callee(&caller, addr)).await.unwrap(), "me");

    let wrong = [
        ("a role less", issue(&nodes(&[Role::Decode]), &here(), now())),
        ("no role", issue(&Bearer::Etcd, &here(), now())),
        ("a caller's", issue(&nodes(&[Role::Coordinator]), &here(), now())),
        ("another address", issue(&nodes(&[Role::Prefill, Role::Decode]), &["10.0.0.1".to_owned()], now())),
        ("expired", issue(&nodes(&[Role::Prefill, Role::Decode]), &here(), past())),
        ("another authority", Files::of(&self::authority(), &nodes(&[Role::Prefill, Role::Decode]))),
    ];
    for (what, files) in wrong {
        let (addr, _server) = serve(&files.trusted_blindly());
        let refused = describe(callee(&caller, addr)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{what}: {refused}");
    }
    let (addr, _server) = serve(&Trust::none());
    assert!(describe(callee(&caller, addr)).await.is_err());
}

#[tokio::test]
async fn a_name_stands_for_every_address() {
    let authority = authority();
    let (known, other) = ("nodes.baton", "others.baton");
    let of = |role, certified: &str, called: Option<&str>| {
        let issued = authority.issue(&nodes(&[role]), &[certified.to_owned()], now()).unwrap();
        let mut files = Files::new(&authority, &issued);
        files.config.name = called.map(str::to_owned);
        files.trusted_blindly()
    };
    let worker = BTreeSet::from(WORKER);
    let call = |from: Trust, addr: SocketAddr| {
        describe(from.callee(&addr.to_string(), &worker).unwrap().connect_lazy())
    };
    let (addr, _server) = serve(&of(Role::Decode, known, None));
    assert_eq!(call(of(Role::Coordinator, known, Some(known)), addr).await.unwrap(), "me");
    for called in [None, Some(other)] {
        let refused = call(of(Role::Coordinator, known, called), addr).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{called:?}: {refused}");
    }
    // The address is no longer enough, and the role is still asked for.
    let (addr, _server) = serve(&of(Role::Decode, "127.0.0.1", None));
    assert!(call(of(Role::Coordinator, known, Some(known)), addr).await.is_err());
    let (addr, _server) = serve(&of(Role::Prefill, known, None));
    assert!(call(of(Role::Coordinator, known, Some(known)), addr).await.is_err());

    let prefill = of(Role::Prefill, known, Some(known));
    assert!(meet(&prefill, &of(Role::Decode, known, Some(known))).await);
    assert!(!meet(&prefill, &of(Role::Decode, known, Some(other))).await);
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused_at_start() {
    let mut files = Files::of(&authority(), &nodes(&WORKER));
    files.config.name = Some("10.0.0.1:7000 or so".to_owned());
    let error = Trust::load(&files.config, CLUSTER, &WORKER.into()).unwrap_err();
    assert!(error.to_string().contains("10.0.0.1:7000 or so"), "{error}");
}

#[tokio::test]
async fn without_certificates_this_machine_speaks_in_the_open() {
    let (addr, _server) = serve(&Trust::none());
    let callee = Trust::none().callee(&addr.to_string(), &BTreeSet::from(WORKER)).unwrap();
    assert_eq!(describe(callee.connect_lazy()).await.unwrap(), "me");
}

/// Both ends of a data socket between these two, and whether a byte came through.
pub async fn meet(prefill: &Trust, decode: &Trust) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accepting = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = prefill.accept(socket, &[Role::Decode]).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        // Until the peer has read it.
        stream.read_u8().await.map(|_| ())
    };
    let dialling = async {
        let mut stream = decode.connect(TcpStream::connect(addr).await?, &[Role::Prefill]).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        std::io::Result::Ok(byte)
    };
    let (accepted, read) = tokio::join!(accepting, dialling);
    accepted.is_ok() && read.is_ok_and(|byte| byte == 7)
}

#[tokio::test]
async fn data_sockets_join_a_prefill_node_and_a_decode_node() {
    let authority = authority();
    let of = |authority: &Authority, role| Files::of(authority, &nodes(&[role])).trusted_blindly();
    let (prefill, decode) = (of(&authority, Role::Prefill), of(&authority, Role::Decode));
    assert!(meet(&prefill, &decode).await);
    assert!(!meet(&prefill, &prefill).await);
    assert!(!meet(&decode, &decode).await);
    let stranger = self::authority();
    assert!(!meet(&prefill, &of(&stranger, Role::Decode)).await);
    assert!(!meet(&of(&stranger, Role::Prefill), &decode).await);
    let expired = authority.issue(&nodes(&[Role::Decode]), &here(), past()).unwrap();
    assert!(!meet(&prefill, &Files::new(&authority, &expired).trusted_blindly()).await);
    assert!(!meet(&prefill, &Trust::none()).await);
    assert!(!meet(&Trust::none(), &decode).await);
}
