//! One piece of work: from when to when, part of what, and what it came to.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, Value,
    global::{self, BoxedSpan},
    propagation::TextMapPropagator,
    trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::export::is_collected;

/// The header, and what spans are found by in it.
const TRACEPARENT: &str = "traceparent";
/// The longest that is passed on: version 0 has 55 bytes, later ones may have more.
const LONGEST: usize = 256;

/// A piece of work that ends when this is dropped.
#[derive(Default)]
pub struct Span {
    /// Absent if nobody collects it.
    span: Option<BoxedSpan>,
    /// Of what this is a part, in words of W3C.
    parent: String,
}

// === impl Span ===

impl Span {
    /// A call from outside, whose `traceparent` header may say what it is a part of. One that is
    /// malformed says nothing.
    #[must_use]
    pub fn of_call(name: impl FnOnce() -> String, traceparent: Option<&str>) -> Self {
        let parent = traceparent.filter(|words| is_traceparent(words)).unwrap_or_default();
        if is_collected() {
            Self::made(name().into(), SpanKind::Server, parent, None)
        } else {
            Self::lost(parent)
        }
    }

    /// A part of what `parent` names; nothing if that is empty.
    #[must_use]
    pub fn part(name: &'static str, parent: &str) -> Self {
        if parent.is_empty() || !is_collected() {
            return Self::lost(parent);
        }
        Self::made(name.into(), SpanKind::Internal, parent, None)
    }

    /// A part of this that took so long, until now.
    pub fn took(&self, name: &'static str, duration: Duration) {
        if self.span.is_some() {
            drop(Self::made(
                name.into(),
                SpanKind::Internal,
                &self.parent(),
                Some(SystemTime::now() - duration),
            ));
        }
    }

    /// Says something of it, which is not made where nobody collects it.
    pub fn set<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Something happens now, once.
    pub fn mark(&mut self, name: &'static str) {
        if let Some(span) = &mut self.span {
            span.add_event(name, Vec::new());
        }
    }

    /// Something of which one number tells happens now.
    pub fn mark_with(&mut self, name: &'static str, key: &'static str, value: i64) {
        if let Some(span) = &mut self.span {
            span.add_event(name, vec![KeyValue::new(key, value)]);
        }
    }

    /// It has failed.
    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(reason));
        }
    }

    /// The trace that it is kept in, if it is kept.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let context = self.span.as_ref()?.span_context();
        context.is_sampled().then(|| context.trace_id().to_string())
    }

    /// The `traceparent` of its parts: its own, or, if nobody collects it, that of what it is a part of.
    #[must_use]
    pub fn parent(&self) -> String {
        let Some(span) = &self.span else { return self.parent.clone() };
        let mut words = HashMap::new();
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut words);
        words.remove(TRACEPARENT).unwrap_or_default()
    }

    fn lost(parent: &str) -> Self {
        Self { span: None, parent: parent.to_owned() }
    }

    fn made(name: Cow<'static, str>, kind: SpanKind, parent: &str, begun: Option<SystemTime>) -> Self {
        let words = HashMap::from([(TRACEPARENT.to_owned(), parent.to_owned())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &words);
        let tracer = global::tracer("baton");
        let mut builder = tracer.span_builder(name).with_kind(kind);
        builder.start_time = begun;
        Self { span: Some(tracer.build_with_context(builder, &context)), parent: parent.to_owned() }
    }
}

/// Whether a header has the form of W3C's Trace Context: version, trace, span and flags in small
/// hexadecimal, and behind those of later versions anything.
fn is_traceparent(words: &str) -> bool {
    let is_hex = |part: &str, bytes: usize| {
        part.len() == 2 * bytes
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_id = |part: &str, bytes| is_hex(part, bytes) && part.bytes().any(|byte| byte != b'0');
    let mut parts = words.split('-');
    let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let may_end = match parts.next() {
        None => true,
        Some(_) => version != "00",
    };
    words.len() <= LONGEST
        && words.is_ascii()
        && (is_hex(version, 1) && version != "ff" && may_end)
        && (is_id(trace, 16) && is_id(span, 8) && is_hex(flags, 1))
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.parent()).finish()
    }
}
