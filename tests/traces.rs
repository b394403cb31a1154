//! One request's trace, whole across processes: from a caller's span to a prefill node's, as a
//! collector of OpenTelemetry is told it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::sandbox::{Cluster, Plan, eventually};

const SETTINGS: &str = r#"
cluster = "traces"
model = "mock"

[engine]
backend = "mock"
pages = 64

[engine.scheduler]
max_batch_tokens = 64

[frontend]
listen = "127.0.0.1:0"
"#;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Keeps what it is sent: the node, and one of its spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let names = sent.resource.into_iter().flat_map(|resource| resource.attributes);
            let node = names.filter(|name| name.key == "service.instance.id").find_map(|name| {
                match name.value?.value? {
                    Value::StringValue(node) => Some(node),
                    _ => None,
                }
            });
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (node.clone().unwrap_or_default(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_trace_is_whole_across_processes() {
    let collector = Collector::default();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let otlp = socket.local_addr().unwrap();
    let service = TraceServiceServer::new(collector.clone());
    // Ends with the test.
    let mut serving = JoinSet::new();
    serving.spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(socket)));

    let settings = format!("{SETTINGS}\n[traces]\notlp = \"http://{otlp}\"\n");
    let cluster = Cluster::start(&Plan { settings, prefill: 1, decode: 1 }).await;
    let body = json!({"model": "mock", "prompt": vec![40; 300], "max_tokens": 5, "ignore_eos": true});
    let call = cluster.http.post(format!("{}/v1/completions", cluster.url)).json(&body);
    let answer = call.header("traceparent", format!("00-{TRACE}-{CALLER}-01")).send().await.unwrap();
    assert!(answer.status().is_success());

    let wanted = BTreeMap::from([
        ("POST /v1/completions", ("coordinator", None)),
        ("admission", ("coordinator", Some("POST /v1/completions"))),
        ("attempt", ("coordinator", Some("POST /v1/completions"))),
        ("generate", ("decode-1", Some("attempt"))),
        ("handoff", ("decode-1", Some("generate"))),
        ("frames", ("decode-1", Some("handoff"))),
        ("decode", ("decode-1", Some("generate"))),
        ("prefill", ("prefill-1", Some("handoff"))),
        ("queue", ("prefill-1", Some("prefill"))),
    ]);
    let spans = eventually("all spans", || async {
        let spans = collector.0.lock().unwrap().clone();
        (spans.len() >= wanted.len()).then_some(spans)
    })
    .await;
    let ids: BTreeMap<_, _> = spans.iter().map(|(_, span)| (hex(&span.span_id), &*span.name)).collect();
    let found = spans.iter().map(|(node, span)| {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        let parent = hex(&span.parent_span_id);
        let above = ids.get(&parent).copied();
        assert!(above.is_some() || parent == CALLER, "{} hangs nowhere", span.name);
        (&*span.name, (&**node, above))
    });
    let found: BTreeSet<_> = found.collect();
    let wanted: BTreeSet<_> = wanted.into_iter().collect();
    assert_eq!(found, wanted);

    let marks = |name: &str| {
        let (_, span) = spans.iter().find(|(_, span)| span.name == name).unwrap();
        span.events.iter().map(|event| event.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(marks("attempt"), ["first token"]);
    // 300 tokens in steps of 64, and what they end in.
    assert_eq!(marks("prefill").iter().filter(|mark| *mark == "chunk").count(), 5);
    // Whoever sees in the metrics that a call was slow finds the call.
    let metrics =
        cluster.http.get(format!("{}/metrics", cluster.url)).send().await.unwrap().text().await.unwrap();
    let is_exemplar = |line: &&str| line.contains(&format!("# {{trace_id=\"{TRACE}\"}}"));
    let exemplars: Vec<_> = metrics.lines().filter(is_exemplar).collect();
    for name in
        ["baton_http_time_to_first_token_seconds_bucket", "baton_http_request_duration_seconds_bucket"]
    {
        assert_eq!(exemplars.iter().filter(|line| line.starts_with(name)).count(), 1, "{exemplars:?}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
