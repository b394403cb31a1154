//! Where the time of an answer went, as a header that browsers and proxies know.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::generation::Used;

/// Its name; behind a stream it comes as a trailer.
pub static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Of a call with one prompt, once its bill is known.
pub fn timing(used: &[Used]) -> Option<HeaderMap> {
    let [Used { bill: Some(bill), .. }] = used else { return None };
    let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
    let parts = [
        ("queue", bill.queue),
        ("earlier", bill.earlier),
        ("prefill", bill.prefill),
        ("transfer", bill.transfer),
        ("wait", bill.exposed),
        ("decode", bill.decode),
    ];
    let text = parts.map(|(name, time)| format!("{name};dur={}", ms(time))).join(", ");
    let value = HeaderValue::from_str(&text).ok()?;
    Some(HeaderMap::from_iter([(SERVER_TIMING.clone(), value)]))
}
