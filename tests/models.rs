//! One cluster, two models: the real one and the mock, each with a prefill and a decode node of its
//! own, as processes over a real etcd. What happens to one is nothing to the other.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::sandbox::{Cluster, Operator, Outcome, Plan, complete, eventually, mock_expected};

const SETTINGS: &str = r#"
cluster = "models"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
step_us_base = 8000

[coordinator]
models = ["mock", "smollm2-135m", "absent"]
node_wait_ms = 500

[[coordinator.budgets.classes]]
model = "smollm2-135m"
max_priority = -1
ttft_ms = 30000

[[coordinator.budgets.classes]]
model = "smollm2-135m"
ttft_ms = 4000

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[[nodes]]
id = "real-prefill"
roles = ["prefill"]
model = "smollm2-135m"

[[nodes]]
id = "real-decode"
roles = ["decode"]
model = "smollm2-135m"
"#;

const ALONE: &str = r#"
model = "smollm2-135m"

[engine]
kv_memory_mib = 64

[frontend]
listen = "127.0.0.1:0"
"#;

const REAL: [&str; 3] = ["engine.backend=cpu", "engine.pages=0", "engine.kv_memory_mib=64"];

/// The API as clients know it.
struct Side {
    http: reqwest::Client,
    url: String,
}

impl Side {
    fn of(cluster: &Cluster) -> Self {
        Self { http: cluster.http.clone(), url: cluster.url.clone() }
    }
}

/// A seeded answer of the mock, which is right and whole.
async fn mock_answers(side: &Side, seed: u64, tokens: usize) -> Value {
    let prompt: Vec<u32> = (0..60).map(|at| 32 + ((seed * 31 + at * 7) % 90) as u32).collect();
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": 1.0, "stream": true,
        "ignore_eos": true, "stream_options": { "include_usage": true },
    });
    let answer = complete(&side.http, &side.url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    let sampling = baton_protocol::Sampling { seed, ..Default::default() };
    assert_eq!(answer.texts, mock_expected(&prompt, &sampling, 1, tokens));
    answer.usage
}

fn real_body(max_tokens: u32) -> Value {
    json!({
        "model": "smollm2-135m", "prompt": "The relay team ran around the track and then", "temperature": 0.0,
        "max_tokens": max_tokens, "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
    })
}

/// Status and error of a call that is refused.
async fn refused(side: &Side, model: &str) -> (u16, Value) {
    let body = json!({ "model": model, "prompt": "Once", "max_tokens": 2 });
    let call = side.http.post(format!("{}/v1/completions", side.url)).json(&body);
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["error"].take())
}

async fn start() -> Cluster {
    let plan = Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 };
    let mut cluster = Cluster::start(&plan).await;
    for node in ["real-prefill", "real-decode"] {
        cluster.start_node_with(node, &REAL);
    }
    cluster.wait_for_members(4).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn each_model_is_answered_by_its_own_nodes() {
    let alone = Cluster::start_embedded(ALONE).await;
    let expected = complete(&alone.http, &alone.url, &real_body(24)).await;
    drop(alone);
    let cluster = start().await;
    let side = Side::of(&cluster);

    let get = async |path: &str| -> Value {
        side.http.get(format!("{}{path}", side.url)).send().await.unwrap().json().await.unwrap()
    };
    let listed = get("/v1/models").await;
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["mock", "smollm2-135m"]);
    assert_eq!(get("/ready").await["models"], json!(["mock", "smollm2-135m"]));

    // The first of `coordinator.models` is meant where none is named.
    assert_eq!(get("/info").await["model_id"], "mock");

    let real = async {
        let answer = complete(&side.http, &side.url, &real_body(24)).await;
        assert_eq!((&answer.outcome, &answer.texts), (&Outcome::Done, &expected.texts));
        answer.usage
    };
    let (real, mock) = tokio::join!(real, mock_answers(&side, 5, 24));
    assert_eq!(real["baton_bill"]["prefill_node"], "real-prefill", "{real}");
    assert_eq!(mock["baton_bill"]["prefill_node"], "prefill-1", "{mock}");

    let (status, error) = refused(&side, "nobody").await;
    assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
    let (status, error) = refused(&side, "absent").await;
    assert_eq!(status, 503, "{error}");
    assert!(error["message"].as_str().unwrap().contains("absent"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_lost_its_only_decode_node_is_unavailable_and_the_other_does_not_notice() {
    let mut cluster = start().await;
    let operator = Operator::of(&cluster);
    let side = Side::of(&cluster);
    let long = async {
        let call = side.http.post(format!("{}/v1/completions", side.url)).json(&real_body(1500));
        let answer = call.header("x-baton-priority", "-5").send().await.unwrap();
        answer.text().await.unwrap()
    };
    let killing = async {
        let both = |requests: &[Value]| requests.iter().filter(|one| one["stage"] == "decode").count() == 7;
        for request in operator.sees("answers of both models", both).await {
            let ttft = if request["model"] == "mock" { 1000.0 } else { 30_000.0 };
            assert_eq!(request["ttft_ms"], json!(ttft), "{request}");
        }
        cluster.kill("real-decode");
    };
    let mocks = join_all((0..6).map(|seed| mock_answers(&side, seed, 300)));
    let (long, (), _) = tokio::join!(long, killing, mocks);
    assert!(long.contains("\"error\"") && !long.contains("[DONE]"), "{long}");

    let (status, error) = refused(&side, "smollm2-135m").await;
    assert_eq!(status, 503, "{error}");
    assert!(error["message"].as_str().unwrap().contains("no decode node"), "{error}");
    mock_answers(&side, 9, 20).await;
    cluster.start_node_with("real-decode", &REAL);
    eventually("the model to be served again", || async {
        let answer = complete(&side.http, &side.url, &real_body(4)).await;
        (answer.outcome == Outcome::Done).then_some(())
    })
    .await;
}
