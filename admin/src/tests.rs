//! The document against the routes, without a cluster.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use baton_coordinator::{Coordinator, CoordinatorConfig, CoordinatorTasks};
use baton_registry::MemoryRegistry;
use baton_trust::{Rank, Trust};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, transport::Server};
use tower::ServiceExt;

use crate::{
    Desk, openapi, router, service,
    views::{self, Class, Limits, NodeName, Nothing, admin_client::AdminClient},
};

fn coordinator() -> (Coordinator, CoordinatorTasks) {
    Coordinator::new(CoordinatorConfig::default(), Arc::new(MemoryRegistry::new()), Trust::none())
}

async fn call(coordinator: &Coordinator, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
    let response = router(Desk::new(coordinator.clone())).oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn what_is_described_is_routed_and_what_is_routed_is_described() {
    let (coordinator, _tasks) = coordinator();
    let document = openapi::document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let (status, body) =
                call(&coordinator, &method.to_uppercase(), &path.replace("{id}", "ab"), "").await;
            let is_routed = body["error"].as_str().is_none_or(|error| !error.contains("no such route"));
            assert!(is_routed, "{method} {path}: {status} {body}");
        }
        described.insert(path.clone());
    }
    let routes = include_str!("routes.rs").split(".route(\"").skip(1);
    let routed: BTreeSet<_> = routes.map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    assert_eq!(described, routed);
}

#[tokio::test]
async fn limits_are_changed_by_revision_and_checked() {
    let (coordinator, _tasks) = coordinator();
    let path = "/admin/v1/limits";
    let (_, before) = call(&coordinator, "GET", path, "").await;
    let mut wanted: Limits = serde_json::from_value(before).unwrap();
    wanted.itl_ms = 30;
    wanted.classes = vec![Class { model: Some("m".to_owned()), ttft_ms: Some(9), ..Class::default() }];
    let body = serde_json::to_string(&wanted).unwrap();
    let (status, now) = call(&coordinator, "PUT", path, &body).await;
    assert_eq!((status, &now["revision"], &now["itl_ms"]), (StatusCode::OK, &json!(2), &json!(30)));
    assert_eq!(now["classes"][0]["ttft_ms"], json!(9));
    let (status, refusal) = call(&coordinator, "PUT", path, &body).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refusal}");
    let invalid = serde_json::to_string(&Limits { revision: 2, max_running: 0, ..wanted }).unwrap();
    for body in [invalid.as_str(), "", "{}", "[1]", "{\"revision\": 2, \"more\": 1}"] {
        assert_eq!(call(&coordinator, "PUT", path, body).await.0, StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(call(&coordinator, "GET", path, "").await.1, now);
}

#[tokio::test]
async fn nobody_is_not_drained_and_nothing_is_not_cancelled() {
    let (coordinator, _tasks) = coordinator();
    for (method, path) in [
        ("GET", "/admin/v1/nodes/nobody"),
        ("POST", "/admin/v1/nodes/nobody/drain"),
        ("POST", "/admin/v1/nodes/nobody/undrain"),
        ("DELETE", "/admin/v1/requests/00"),
        ("DELETE", "/admin/v1/requests/none"),
        ("GET", "/admin/v1/nowhere"),
        ("DELETE", "/admin/v1/queue"),
    ] {
        let (status, body) = call(&coordinator, method, path, "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
        assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "{body}");
    }
}

#[tokio::test]
async fn pages_of_browsers_are_refused() {
    let (coordinator, _tasks) = coordinator();
    for (name, value, is_let_in) in [
        ("host", "127.0.0.1:8001", true),
        ("host", "[::1]:8001", true),
        ("host", "localhost", true),
        ("host", "rebound.example:8001", false),
        ("host", "10.0.0.1:8001", false),
        ("origin", "https://example.com", false),
        ("origin", "null", false),
        ("origin", "http://127.0.0.1:3000", false),
        ("origin", "http://localhost:8001", true),
        ("sec-fetch-site", "cross-site", false),
        ("sec-fetch-site", "same-site", false),
        ("sec-fetch-site", "same-origin", true),
        ("sec-fetch-site", "none", true),
    ] {
        let request = Request::builder().uri("/admin/v1/queue").header(name, value);
        let request = if name == "host" { request } else { request.header("host", "localhost:8001") };
        let request = request.body(Body::empty()).unwrap();
        let status = router(Desk::new(coordinator.clone())).oneshot(request).await.unwrap().status();
        assert_eq!(status == StatusCode::OK, is_let_in, "{name}: {value}");
        assert!(is_let_in || status == StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn the_same_is_said_over_grpc() {
    let (coordinator, _tasks) = coordinator();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    let server = Server::builder().add_service(service(Desk::new(coordinator.clone())));
    serving.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut client = AdminClient::connect(url).await.unwrap();

    let limits = client.get_limits(Nothing {}).await.unwrap().into_inner();
    let (_, over_http) = call(&coordinator, "GET", "/admin/v1/limits", "").await;
    assert_eq!(serde_json::to_value(&limits).unwrap(), over_http);
    let wanted = Limits { max_running: 7, ..limits.clone() };
    let changed = client.set_limits(wanted.clone()).await.unwrap().into_inner();
    assert_eq!(changed, Limits { revision: limits.revision + 1, ..wanted.clone() });
    assert_eq!(client.set_limits(wanted).await.unwrap_err().code(), Code::Aborted);
    let none = Limits { max_running: 0, ..changed };
    assert_eq!(client.set_limits(none).await.unwrap_err().code(), Code::InvalidArgument);

    assert!(client.list_nodes(Nothing {}).await.unwrap().into_inner().nodes.is_empty());
    let nobody = NodeName { id: "nobody".to_owned() };
    assert_eq!(client.undrain_node(nobody).await.unwrap_err().code(), Code::NotFound);
    let nothing = views::RequestId { id: "none".to_owned() };
    assert_eq!(client.cancel_request(nothing).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn holders_of_keys_alone_come_in_and_what_they_do_is_kept_with_their_names() {
    let (coordinator, _tasks) = coordinator();
    let desk = Desk::new(coordinator).for_owners(Arc::new(|key| match key {
        "right" => Some(("ann".to_owned(), Rank::Admin)),
        "looks" => Some(("bob".to_owned(), Rank::Viewer)),
        "steers" => Some(("eve".to_owned(), Rank::Operator)),
        _ => None,
    }));
    let ask = async |method: &str, path: &str, key: Option<&str>| {
        let request = Request::builder().method(method).uri(path);
        let request = key.into_iter().fold(request, |request, key| request.header("authorization", key));
        let response = router(desk.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (status, asks) = (response.status(), response.headers().contains_key("www-authenticate"));
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert_eq!(asks, status == StatusCode::UNAUTHORIZED);
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    for key in [None, Some("right"), Some("Bearer wrong"), Some("Basic right")] {
        for path in ["/admin/v1/cluster", "/openapi.json", "/console/api/v1/models"] {
            assert_eq!(ask("GET", path, key).await.0, StatusCode::UNAUTHORIZED, "{key:?}");
        }
    }
    let key = Some("Bearer right");
    assert_eq!(ask("DELETE", "/admin/v1/requests/ab", key).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("POST", "/admin/v1/flush", key).await.0, StatusCode::OK);
    // Each rank may do what those before it may, and no more.
    let (looks, steers) = (Some("Bearer looks"), Some("Bearer steers"));
    assert_eq!(ask("GET", "/admin/v1/nodes", looks).await.0, StatusCode::OK);
    let cancel = "/admin/v1/requests/cd";
    assert_eq!(ask("DELETE", cancel, steers).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("POST", "/admin/v1/flush", steers).await.0, StatusCode::FORBIDDEN);
    for (method, path) in [
        ("DELETE", cancel),
        ("POST", "/admin/v1/flush"),
        ("POST", "/admin/v1/nodes/a/drain"),
        ("POST", "/admin/v1/nodes/a/undrain"),
    ] {
        let (status, refusal) = ask(method, path, looks).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {refusal}");
    }
    let (_, acts) = ask("GET", "/admin/v1/audit", key).await;
    assert_eq!(acts[0]["who"], "bob");
    assert_eq!(acts[0]["refused"], "that takes a key of rank operator, and this one's is viewer");
    let acts = Value::from(acts.as_array().unwrap()[6..].to_vec());
    let said = |at: usize| (acts[at]["who"].clone(), acts[at]["what"].clone(), acts[at]["refused"].clone());
    assert_eq!(said(0), (json!("ann"), json!("flush"), Value::Null));
    assert_eq!(said(1), (json!("ann"), json!("cancel"), json!("no request \"ab\" is in flight")));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    let server = Server::builder().add_service(service(desk.clone()));
    serving.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut client = AdminClient::connect(url).await.unwrap();
    assert_eq!(client.flush(Nothing {}).await.unwrap_err().code(), Code::Unauthenticated);
    let mut call = tonic::Request::new(Nothing {});
    call.metadata_mut().insert("authorization", "Bearer right".parse().unwrap());
    assert_eq!(client.list_acts(call).await.unwrap().into_inner().acts.len(), 8);
    let mut call = tonic::Request::new(Nothing {});
    call.metadata_mut().insert("authorization", "Bearer steers".parse().unwrap());
    assert_eq!(client.flush(call).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_playground_passes_on_what_users_need_and_not_an_operators_key() {
    let (coordinator, _tasks) = coordinator();
    let echo = async |request: Request<Body>| {
        let words = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let said = json!({ "path": request.uri().path(), "key": words("x-api-key"), "admin": words("authorization") });
        axum::Json(said)
    };
    let desk = Desk::new(coordinator.clone()).with_playground(axum::Router::new().fallback(echo));
    let path = "/console/api/v1/chat/completions";
    let request = Request::post(path).header("x-api-key", "theirs").header("authorization", "Bearer own");
    let response = router(desk).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let said: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(said, json!({ "path": "/v1/chat/completions", "key": "theirs", "admin": null }));
    assert_eq!(call(&coordinator, "POST", path, "").await.0, StatusCode::NOT_FOUND);
}
