//! Headers that calls may carry.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::refused;
use crate::patience::Patience;

/// Milliseconds of a day.
const DAY: u128 = 86_400_000;

/// Lines of `name: value`: what they say of patience is within bounds, and of traces, what nodes take.
pub fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        let (Ok(name), Ok(value)) = (name, value) else { continue };
        if headers.try_append(name, value).is_err() {
            return;
        }
    }
    match Patience::of(&headers) {
        Ok(Patience { wishes, deadline }) => {
            for time in [wishes.ttft, wishes.itl, deadline].into_iter().flatten() {
                assert!(time.as_millis() <= DAY, "{time:?}");
            }
            assert!((-100..=100).contains(&wishes.priority));
        }
        Err(error) => refused(&error),
    }
    let caller = headers.get("traceparent").and_then(|words| words.to_str().ok());
    let trace = baton_traces::Span::of_call(String::new, caller).parent();
    assert!(trace.is_empty() || Some(&*trace) == caller && trace.len() <= 256, "{trace:?}");
}
