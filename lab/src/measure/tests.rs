use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle, time::sleep};

use super::*;
use crate::{
    budgets::Budgets,
    traffic::{Arrivals, Class, Length, Piece, Prefixes, Session, Shape, Traffic, Vocabulary, Workload},
};

/// A server that counts bytes of prompts, answers ` one two …`, and refuses or
/// breaks where a prompt says so.
#[derive(Default)]
struct Fake {
    bodies: parking_lot::Mutex<Vec<Value>>,
    /// Held while answering, if one at a time is to take this long.
    pace: Option<Duration>,
    one: Mutex<()>,
}

struct Served {
    url: String,
    fake: Arc<Fake>,
    server: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(fake: Fake) -> Served {
    let fake = Arc::new(fake);
    let models = get(|| async { Json(json!({"data": [{"id": "fake"}]})) });
    let metrics =
        get(|| async { "# HELP x\nvllm:kv_cache_usage_perc{a=\"b c\"} 0.25\nkv_cache_usage_perc 0.75\n" });
    let app = Router::new()
        .route("/v1/models", models)
        .route("/metrics", metrics)
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(complete))
        .with_state(Arc::clone(&fake));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "ended by its handle")]
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Served { url, fake, server }
}

async fn complete(State(fake): State<Arc<Fake>>, Json(body): Json<Value>) -> Response {
    fake.bodies.lock().push(body.clone());
    if let Some(pace) = fake.pace {
        let _one = fake.one.lock().await;
        sleep(pace).await;
    }
    let chat = body["messages"].is_array();
    let prompt =
        if chat { body["messages"].to_string() } else { body["prompt"].as_str().unwrap_or("").to_owned() };
    if prompt.contains("refuse!") {
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], "no room").into_response();
    }
    let tokens = body["max_tokens"].as_u64().unwrap() as usize;
    let usage = json!({
        "prompt_tokens": body["prompt"].as_array().map_or(prompt.len(), Vec::len), "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": 3},
        "baton_bill": {"queue_ms": 1.0, "prefill_ms": 2.0, "transfer_ms": 3.0, "exposed_ms": 0.5, "decode_ms": 4.0},
    });
    if body["stream"] == false {
        let said = json!({"choices": [{"message": {"content": " one".repeat(tokens)}}], "usage": usage});
        return ([("server-timing", "queue;dur=7, decode;dur=2.5")], Json(said)).into_response();
    }
    // Thoughts, by both names that servers have for them, count as text once.
    let thought = json!({"delta": {"reasoning": " one", "reasoning_content": " one"}});
    let said = |i| match (chat, i) {
        (true, 0) => thought.clone(),
        (true, _) => json!({"delta": {"content": " one"}}),
        (false, _) => json!({"text": " one"}),
    };
    let mut parts: Vec<String> =
        (0..tokens).map(said).map(|choice| format!("data: {}\n\n", json!({"choices": [choice]}))).collect();
    if !prompt.contains("breaks") {
        parts.push(format!(
            "data: {}\r\n\r\n: note\n\ndata: [DONE]\n\n",
            json!({"choices": [], "usage": usage})
        ));
    }
    let parts = parts.into_iter().map(|part| Ok::<_, Infallible>(Bytes::from(part)));
    Body::from_stream(futures::stream::iter(parts)).into_response()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn said(text: &str, at_ms: u64) -> Session {
    Session::single(Duration::from_millis(at_ms), 0, Piece::Text(text.to_owned()), 4)
}

async fn measure(served: &Served, manner: Manner, traffic: Traffic) -> Run {
    let endpoint = Arc::new(Endpoint::connect(&served.url, manner).await.unwrap());
    let mut told = 0;
    let run = run(&endpoint, traffic, &[Class::default()], |records| told += records.len()).await.unwrap();
    assert_eq!(told, run.records.len());
    run
}

fn plain(api: Api, streams: bool) -> Manner {
    Manner { api, streams, vocabulary: Some(Vocabulary::PLAIN), ..Manner::default() }
}

#[test]
fn events_may_be_cut_anywhere() {
    let stream = b"data: {\"a\":1}\r\n\r\n: note\n\ndata: [DONE]\n\n";
    for cut in 0..stream.len() {
        let (mut events, mut found) = (Events::default(), Vec::new());
        for part in [&stream[..cut], &stream[cut..]] {
            events.push(part);
            while let Some(data) = events.next_data() {
                found.push(data.into_owned());
            }
        }
        assert_eq!(found, ["{\"a\":1}", "[DONE]"]);
    }
}

#[test]
fn spreads_are_by_nearest_rank() {
    let spread = Spread::of((1..=200).rev().map(f64::from));
    assert_eq!(
        (spread.p50, spread.p90, spread.p95, spread.p99, spread.max),
        (100.0, 180.0, 190.0, 198.0, 200.0)
    );
    assert_eq!((spread.mean, spread.count), (100.5, 200));
    assert_eq!(Spread::of([]), Spread::default());
}

#[test]
fn every_outcome_is_told_apart() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let sessions = vec![said("hello", 0), said("refuse!", 1), said("breaks", 2)];
        let run =
            measure(&served, plain(Api::Completions, true), Traffic { sessions, ..Traffic::default() }).await;
        let mut records = run.records;
        records.sort_by_key(|record| record.session);
        let [hello, full, broken] = records.as_slice() else { panic!("three requests") };
        assert!(hello.is_answered() && !hello.has_other_length());
        assert_eq!((hello.prompt_tokens, hello.cached_tokens, hello.output_tokens), (Some(5), Some(3), 4));
        assert_eq!(hello.phases.unwrap().wait_ms, 0.5);
        assert_eq!(hello.events(), 4);
        assert!(hello.ttft.unwrap() <= hello.e2e() && hello.sent >= hello.intended);
        let refused = Outcome::Refused { status: 429, says_when: true, body: "no room".to_owned() };
        assert_eq!(full.outcome, refused);
        assert!(matches!(&broken.outcome, Outcome::Failed { why } if why.contains("[DONE]")), "{broken:?}");
        // A run may be over before its first look at the metrics is answered.
        let (mut usage, mut runs) = (run.kv_usage, 1);
        while usage.is_empty() && runs < 100 {
            let traffic = Traffic { sessions: vec![said("hello", 0)], ..Traffic::default() };
            usage = measure(&served, plain(Api::Completions, true), traffic).await.kv_usage;
            runs += 1;
        }
        assert_eq!(usage.first(), Some(&0.5));

        let classes = [Class::default()];
        let figures = Summary::of(&Run { records, seconds: 2.0, ..Run::default() }, &classes).all;
        assert_eq!((figures.answered, figures.refused, figures.failed), (1, 1, 1));
        assert_eq!((figures.goodput, figures.output_per_second), (0.5, 2.0));
    });
}

#[test]
fn chats_are_asked_whole_or_in_streams() {
    block_on(async {
        let served = serve(Fake::default()).await;
        for streams in [true, false] {
            let sessions = vec![said("hello", 0)];
            let run =
                measure(&served, plain(Api::Chat, streams), Traffic { sessions, ..Traffic::default() }).await;
            let record = &run.records[0];
            assert!(record.is_answered(), "{record:?}");
            assert_eq!((record.output_tokens, record.ttft.is_some()), (4, streams));
            assert_eq!(record.phases.unwrap().decode_ms, 4.0);
        }
    });
}

#[test]
fn conversations_carry_what_was_said_and_answered() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let shape = Shape {
            input: Length::fixed(3),
            output: Length::fixed(2),
            turns: Length::fixed(3),
            pause_ms: 1,
            prefixes: Prefixes { tokens: 5, count: 1 },
        };
        let classes = vec![Class { shape, ..Class::default() }];
        let arrivals = Arrivals::Closed { clients: 1 };
        let workload = Workload { sessions: 2, arrivals, classes, ..Workload::default() };
        let run = measure(&served, plain(Api::Chat, true), workload.traffic().unwrap()).await;
        assert_eq!(run.records.iter().map(|record| record.turn).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        let bodies = served.fake.bodies.lock().clone();
        let messages = |index: usize| bodies[index]["messages"].as_array().unwrap().clone();
        assert_eq!(messages(0)[0], messages(3)[0], "the system message is shared");
        assert_eq!(messages(2)[..messages(1).len()], messages(1)[..]);
        assert_eq!(messages(1)[2], json!({"role": "assistant", "content": "one one"}));
        assert_ne!(messages(0)[1], messages(3)[1]);
        // Nobody waits for a client that is busy.
        assert!(run.records[3].intended >= run.records[2].end);
    });
}

#[test]
fn words_are_fitted_to_what_a_server_counts() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let manner = Manner { vocabulary: None, ..plain(Api::Completions, true) };
        let sessions = vec![Session::single(Duration::ZERO, 0, Piece::Drawn { seed: 1, tokens: 200 }, 1)];
        let run = measure(&served, manner, Traffic { sessions, ..Traffic::default() }).await;
        assert_eq!(run.records[0].prompt_tokens, Some(200));
    });
}

#[test]
fn ids_are_for_single_prompts() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let ids =
            |api| Manner { vocabulary: Some(Vocabulary::Ids { low: 32, high: 127 }), ..plain(api, true) };
        let sessions = vec![Session::single(Duration::ZERO, 0, Piece::Drawn { seed: 1, tokens: 7 }, 1)];
        let traffic = Traffic { sessions, ..Traffic::default() };
        let run = measure(&served, ids(Api::Completions), traffic.clone()).await;
        assert_eq!(run.records[0].prompt_tokens, Some(7));
        let endpoint = Arc::new(Endpoint::connect(&served.url, ids(Api::Chat)).await.unwrap());
        let refused = super::run(&endpoint, traffic, &[], |_| {}).await;
        assert!(matches!(refused, Err(MeasureError::NoIds { .. })));
    });
}

/// A server that answers one request after the other is slower than they come:
/// whoever waits behind others is seen to wait, also if the client holds back.
#[test]
fn waiting_is_not_left_out() {
    const PACE: Duration = Duration::from_millis(20);
    block_on(async {
        for max_in_flight in [None, Some(1)] {
            let served = serve(Fake { pace: Some(PACE), ..Fake::default() }).await;
            let sessions = (0..10).map(|number| said("hello", number)).collect();
            let traffic = Traffic { sessions, max_in_flight, ..Traffic::default() };
            let run = measure(&served, plain(Api::Completions, true), traffic).await;
            let slowest = run.records.iter().filter_map(|record| record.ttft).fold(0.0, f64::max);
            // Ten answers take 200 ms, and the last was to be sent after 9.
            assert!(slowest >= 0.19, "{slowest}");
            let has_lag = run.overhead.lag.max >= 0.15;
            assert!(has_lag || max_in_flight.is_none(), "the client's holding back is told as such");
        }
    });
}

#[test]
fn no_session_begins_after_the_end() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let sessions = vec![said("hello", 0), said("late", 400)];
        let traffic = Traffic { sessions, until: Some(Duration::from_millis(300)), ..Traffic::default() };
        assert_eq!(measure(&served, plain(Api::Completions, true), traffic).await.records.len(), 1);
    });
}

#[test]
fn a_class_says_how_long_it_waits_and_how_much_it_matters() {
    block_on(async {
        let served = serve(Fake::default()).await;
        let class = Class {
            budgets: Budgets { ttft_ms: Some(250.0), ..Budgets::default() },
            deadline_ms: Some(1500.0),
            priority: -3,
            ..Class::default()
        };
        for (tells_budgets, ttft) in [(false, None), (true, Some("250"))] {
            let manner = Manner { tells_budgets, ..plain(Api::Chat, true) };
            let endpoint = Endpoint::connect(&served.url, manner).await.unwrap();
            let dialogue = Dialogue::new(endpoint.vocabulary());
            let request = endpoint.request(&dialogue, 1, &class.wishes()).unwrap();
            let said = |name| request.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(said("x-baton-ttft-ms"), ttft);
            assert_eq!((said("x-baton-deadline-ms"), said("x-baton-priority")), (Some("1500"), Some("-3")));
            let usual = endpoint.request(&dialogue, 1, &Class::default().wishes()).unwrap();
            assert!(usual.headers().keys().all(|name| !name.as_str().starts_with("x-baton")));
        }
    });
}

#[test]
fn budgets_are_told_and_kept_or_not() {
    let record = |ttft, gaps: &[f32]| Record {
        class: 0,
        session: 0,
        turn: 0,
        intended: 1.0,
        sent: 1.0,
        end: 2.0,
        outcome: Outcome::Answered,
        ttft,
        gaps: gaps.to_vec(),
        prompt_tokens: None,
        cached_tokens: None,
        output_tokens: gaps.len() + 1,
        wanted_tokens: gaps.len() + 1,
        phases: None,
    };
    let whole = record(Some(0.2), &[0.01, 0.01, 0.04]);
    let budgets = |ttft, itl, tpot, e2e| Budgets { ttft_ms: ttft, itl_ms: itl, tpot_ms: tpot, e2e_ms: e2e };
    for (kept, budgets) in [
        (true, Budgets::default()),
        (true, budgets(Some(200.0), Some(40.1), Some(20.1), Some(1000.0))),
        (false, budgets(Some(199.0), None, None, None)),
        (false, budgets(None, Some(39.0), None, None)),
        (false, budgets(None, None, Some(19.0), None)),
        (false, budgets(None, None, None, Some(999.0))),
    ] {
        assert_eq!(whole.keeps(&budgets), kept, "{budgets:?}");
    }
    let one_stall = record(Some(0.2), &[&[0.01; 199][..], &[0.5]].concat());
    assert!(
        one_stall.keeps(&budgets(None, Some(20.0), None, None)),
        "one gap of 200 is above the percentile"
    );
    // An answer that came whole has no times of tokens.
    assert!(!record(None, &[]).keeps(&budgets(None, Some(20.0), None, None)));
    let refused = Record { outcome: Outcome::Failed { why: String::new() }, ..whole };
    assert!(!refused.keeps(&Budgets::default()));
}

#[test]
fn usage_of_pools_is_their_mean() {
    assert_eq!(kv_usage::mean_of("sglang:token_usage{x=\"1\"} 0.5\nother 7\n"), Some(0.5));
    assert_eq!(kv_usage::mean_of("other 7\n# kv_cache_usage_perc 3"), None);
}
