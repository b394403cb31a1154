//! What an operator does to a cluster that answers requests: a prefill and two
//! decode nodes as processes over a real etcd, mock backend, `baton admin`.

use baton_protocol::Sampling;
use serde_json::{Value, json};

use crate::sandbox::{Cluster, Operator, Outcome, Plan, complete, eventually, mock_expected};

const SETTINGS: &str = r#"
cluster = "operators"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
decode_us_per_sequence = 4000

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"
"#;

fn body(first: u32, tokens: u32) -> (Vec<u32>, Value) {
    let prompt: Vec<u32> = (0..100).map(|at| 32 + (first * 31 + at * 7) % 90).collect();
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": tokens, "seed": 3, "temperature": 1.0, "stream": true,
        "ignore_eos": true,
    });
    (prompt, body)
}

/// Streams an answer, which must be right and whole.
async fn answered(cluster: &Cluster, first: u32, tokens: u32) {
    let (prompt, body) = body(first, tokens);
    let answer = complete(&cluster.http, &cluster.url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    let sampling = Sampling { seed: 3, ..Sampling::default() };
    assert_eq!(answer.texts, mock_expected(&prompt, &sampling, 1, tokens as usize));
}

fn decoding(requests: &[Value]) -> impl Iterator<Item = &str> {
    requests
        .iter()
        .filter(|request| request["stage"] == "decode")
        .map(|request| request["decode"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_finishes_what_it_has_and_gets_nothing_new_until_it_is_undrained() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 2 }).await;
    let operator = Operator::of(&cluster);
    let running = futures::future::join_all((0..4).map(|first| answered(&cluster, first, 300)));
    let draining = async {
        operator
            .sees("answers on both nodes", |all| {
                ["decode-1", "decode-2"].iter().all(|node| decoding(all).any(|on| on == *node))
            })
            .await;
        let node = operator.does(&["drain", "decode-1"]).await.unwrap();
        assert_eq!(node["health"], "draining");
        let last = operator.does(&["drain", "decode-2"]).await.unwrap_err();
        assert!(last.contains("the last decode node of mock"), "{last}");
        let refused = operator.does(&["drain", "decode-3"]).await.unwrap_err();
        assert!(refused.contains("no node decode-3"), "{refused}");
        let later = futures::future::join_all((10..14).map(|first| answered(&cluster, first, 100)));
        let watching = operator.sees("new answers", |all| {
            let new = all.iter().filter(|request| request["tokens"].as_u64() < Some(100));
            decoding(&new.cloned().collect::<Vec<_>>()).next().is_some()
        });
        let ((), _) = tokio::join!(
            async {
                later.await;
            },
            watching
        );
    };
    // Nobody's answer is cut, and none of the later ones was begun on the drained node.
    tokio::join!(
        async {
            running.await;
        },
        draining
    );
    let node = eventually("the node to be empty", || async {
        let node = operator.does(&["node", "decode-1"]).await.unwrap();
        (node["load"]["running"] == 0 && node["in_flight"] == 0).then_some(node)
    });
    assert_eq!(node.await["health"], "draining");
    let attempts = async |node| cluster.count(node, "baton_decode_attempts_total{").await;
    let before = attempts("decode-1").await;
    for first in 20..24 {
        answered(&cluster, first, 5).await;
    }
    assert_eq!(attempts("decode-1").await, before, "a drained node got work");
    assert_eq!(operator.does(&["undrain", "decode-1"]).await.unwrap()["health"], "ready");
    let incidents = operator.does(&["incidents"]).await.unwrap();
    let of_node: Vec<_> =
        incidents.as_array().unwrap().iter().filter(|it| it["node"] == "decode-1").collect();
    let kinds: Vec<_> = of_node.iter().filter_map(|incident| incident["kind"].as_str()).collect();
    assert_eq!(kinds, ["node_ready", "node_draining", "node_ready"], "{incidents}");
    for first in 30..38 {
        answered(&cluster, first, 5).await;
    }
    assert!(attempts("decode-1").await > before, "an undrained node got none");
}

#[tokio::test(flavor = "multi_thread")]
async fn handoffs_are_seen_while_they_are_under_way() {
    let slow = "[transfer]\ntransport = \"tcp\"\nframe_bytes = 512\n[transfer.faults]\nseed = 1\n\
                delay_probability = 1.0\nmax_delay_ms = 200\n";
    let plan = Plan { settings: format!("{SETTINGS}{slow}"), prefill: 1, decode: 1 };
    let cluster = Cluster::start(&plan).await;
    let operator = Operator::of(&cluster);
    let seeing = eventually("a handoff", || async {
        let handoffs = operator.does(&["handoffs"]).await.unwrap();
        let receiving = handoffs.as_array()?.iter().find(|handoff| handoff["state"] == "receiving")?.clone();
        let request = operator.does(&["requests"]).await.unwrap()[0]["id"].clone();
        (receiving["request"] == request).then_some(receiving)
    });
    let ((), handoff) = tokio::join!(answered(&cluster, 1, 20), seeing);
    assert_eq!((&handoff["prefill"], &handoff["decode"]), (&json!("prefill-1"), &json!("decode-1")));
    assert_eq!((&handoff["attempt"], &handoff["leg"], &handoff["have"]), (&json!(0), &json!(0), &json!(0)));
    assert!(handoff["tokens"] == 100 && handoff["age_ms"].as_f64() > Some(0.0), "{handoff}");
    eventually("it is through", || async {
        let handoffs = operator.does(&["handoffs"]).await.unwrap();
        handoffs.as_array()?.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_seen_and_cancelled_and_limits_are_changed() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let operator = Operator::of(&cluster);
    let (_, long) = body(1, 2000);
    let cancelling = async {
        let seen = operator.sees("an answer", |all| decoding(all).next().is_some()).await;
        let request = &seen[0];
        assert_eq!((&request["tenant"], &request["prompt_tokens"]), (&json!("default"), &json!(100)));
        assert_eq!((&request["prefill"], &request["decode"]), (&json!("prefill-1"), &json!("decode-1")));
        operator.does(&["cancel", request["id"].as_str().unwrap()]).await.unwrap();
    };
    let (answer, ()) = tokio::join!(complete(&cluster.http, &cluster.url, &long), cancelling);
    assert_eq!(answer.outcome, Outcome::Error(200, "an operator cancelled the request".to_owned()));
    let road = eventually("the handoff to be counted", || async {
        let roads = operator.does(&["topology"]).await.unwrap();
        (roads[0]["handoffs"].as_u64() > Some(0)).then(|| roads[0].clone())
    });
    let road = road.await;
    assert_eq!((&road["prefill"], &road["decode"]), (&json!("prefill-1"), &json!("decode-1")));
    let transport = road["transport"].as_str().unwrap();
    assert!(["tcp", "shm"].contains(&transport), "{road}");
    assert_eq!(road["handoffs"], 1, "{road}");
    assert!(road["bytes_per_second"].as_f64() > Some(0.0), "{road}");
    cluster.wait_until_idle(std::time::Duration::from_secs(30)).await;
    operator.sees("nobody", <[Value]>::is_empty).await;
    assert!(operator.does(&["cancel", "00"]).await.unwrap_err().contains("no request"));
    let acts = operator.does(&["audit"]).await.unwrap();
    let refused: Vec<_> = acts.as_array().unwrap().iter().map(|act| !act["refused"].is_null()).collect();
    assert_eq!(refused, [true, false], "{acts}");
    assert_eq!((&acts[1]["who"], &acts[1]["what"]), (&json!("anyone"), &json!("cancel")));

    let limits = operator.does(&["limits", "max_running=1", "max_waiting=0", "itl_ms=30"]).await.unwrap();
    assert_eq!(
        (&limits["revision"], &limits["max_running"], &limits["itl_ms"]),
        (&json!(2), &json!(1), &json!(30))
    );
    assert!(operator.does(&["limits", "max_running=0"]).await.unwrap_err().contains("max_running must be"));
    let refusing = async {
        operator.sees("an answer", |all| decoding(all).next().is_some()).await;
        let (_, short) = body(2, 5);
        let refused = complete(&cluster.http, &cluster.url, &short).await;
        assert!(matches!(refused.outcome, Outcome::Error(429, _)), "{refused:?}");
        operator.does(&["limits", "max_running=2"]).await.unwrap();
        answered(&cluster, 2, 5).await;
    };
    tokio::join!(answered(&cluster, 3, 400), refusing);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_forget_their_prefixes_and_answer_as_before() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let operator = Operator::of(&cluster);
    let nodes = ["decode-1", "prefill-1"];
    let hold = async |some: bool| {
        for node in nodes {
            eventually("what a node has cached to be as it should", || async {
                let cached = operator.does(&["node", node]).await.unwrap()["pages"]["cached"].as_u64();
                (cached.is_some_and(|pages| pages > 0) == some).then_some(())
            })
            .await;
        }
    };
    answered(&cluster, 1, 5).await;
    hold(true).await;
    let mut flushed: Vec<String> =
        serde_json::from_value(operator.does(&["flush"]).await.unwrap()["nodes"].take()).unwrap();
    flushed.sort();
    assert_eq!(flushed, nodes);
    hold(false).await;
    answered(&cluster, 1, 5).await;
}
