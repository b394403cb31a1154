use std::{sync::Mutex, time::Duration};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

use crate::{Exporter, Span, TracesConfig, TracesError};

/// The collector is the process's.
pub static ALONE: Mutex<()> = Mutex::new(());

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn parts_hang_together_and_end_in_their_time() {
    let _alone = ALONE.lock().unwrap();
    let kept = InMemorySpanExporter::default();
    let exporter = Exporter::begin(SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build());
    let mut call = Span::of_call(|| "POST /x".to_owned(), Some(CALLER));
    call.took("queue", Duration::from_millis(30));
    let mut part = Span::part("attempt", &call.parent());
    part.mark("first token");
    part.fail("no more");
    drop(part);
    call.set("baton.tokens", || 3);
    assert_eq!(call.trace_id().as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    drop(call);
    // Of nothing, nothing is a part.
    drop(Span::part("alone", ""));

    let spans = kept.get_finished_spans().unwrap();
    let [queue, attempt, call] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(call.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    assert_eq!(call.span_kind, SpanKind::Server);
    for span in &spans {
        assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    }
    for part in [queue, attempt] {
        assert_eq!(part.parent_span_id, call.span_context.span_id());
    }
    assert!(queue.end_time.duration_since(queue.start_time).unwrap() >= Duration::from_millis(30));
    assert_eq!((attempt.events.len(), &attempt.status), (1, &Status::error("no more")));
    drop(exporter);
}

#[test]
fn without_a_collector_a_callers_words_are_passed_on() {
    let _alone = ALONE.lock().unwrap();
    let call = Span::of_call(|| "POST /x".to_owned(), Some(CALLER));
    assert_eq!(Span::part("attempt", &call.parent()).parent(), CALLER);
    let untold = Span::of_call(|| "POST /x".to_owned(), None);
    assert_eq!((untold.parent(), untold.trace_id()), (String::new(), None));
}

/// Nodes refuse requests whose trace is longer than any is, and a header must not make a call fail.
#[test]
fn a_malformed_traceparent_says_nothing() {
    let _alone = ALONE.lock().unwrap();
    let passed = |words: &str| Span::of_call(String::new, Some(words)).parent() == words;
    let later = format!("cc{}-more.of-it", &CALLER[2..]);
    assert!(passed(CALLER) && passed(&later));
    let cases = [
        CALLER.to_uppercase(),
        CALLER.replace('-', "_"),
        CALLER.replace("00-0af", "ff-0af"),
        format!("{CALLER}-more"),
        format!("{later}{}", "-".repeat(256)),
        format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
        format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16)),
        CALLER[..54].to_owned(),
        format!("{CALLER}\u{e9}"),
        "x".repeat(300),
    ];
    for words in cases {
        assert_eq!(Span::of_call(String::new, Some(&words)).parent(), "", "{words}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let with = |otlp: &str, sampled| TracesConfig { otlp: Some(otlp.to_owned()), sampled }.check();
    assert!(matches!(with("https://collector:4317", 1.0), Err(TracesError::Endpoint { .. })));
    assert!(matches!(with("http://collector:4317", 1.5), Err(TracesError::Sampled { .. })));
    assert_eq!(with("http://collector:4317", 0.1).unwrap().as_deref(), Some("http://collector:4317"));
}
