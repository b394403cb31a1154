//! An answer as it comes, for as many readers as want it.

use std::convert::Infallible;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE, response::Parts},
    response::Response,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::ApiError;

/// What has come of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// 0: not yet known.
    status: u16,
    headers: Vec<(String, String)>,
    /// Events of a stream, each with its number; or the whole body.
    parts: Vec<String>,
    /// Bytes of an event whose end has not come.
    #[serde(skip)]
    begun: Vec<u8>,
    #[serde(skip)]
    is_stream: bool,
    /// Whether nothing more will come.
    pub ended: bool,
}

/// Headers that are the answer's own, not its connection's.
const KEPT: [&str; 4] = ["content-type", "cache-control", "x-accel-buffering", "request-id"];

// === impl Record ===

impl Record {
    /// The head is there.
    pub fn begin(&mut self, head: &Parts) {
        self.status = head.status.as_u16();
        self.is_stream = head.headers.get(CONTENT_TYPE).is_some_and(|media| media == "text/event-stream");
        let kept = head.headers.iter().filter(|(name, _)| {
            let name = name.as_str();
            // What refusals say of retrying goes to everyone who waits.
            KEPT.contains(&name) || !head.status.is_success() && name.contains("retry")
        });
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        self.headers = kept.filter_map(text).collect();
    }

    /// More of the body. Of a stream, events become visible when they are complete.
    pub fn push(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        if !self.is_stream {
            return;
        }
        while let Some(end) = self.begun.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.begun.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            self.parts.push(format!("id: {}\n{event}", self.parts.len() + 1));
        }
    }

    /// Nothing more will come.
    pub fn end(&mut self) {
        let rest = std::mem::take(&mut self.begun);
        if !rest.is_empty() {
            self.parts.push(String::from_utf8_lossy(&rest).into_owned());
        }
        self.ended = true;
    }

    /// Whether it is an answer, not a refusal.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// In memory, about.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len() + size_of::<String>()).sum()
    }
}

/// The answer from behind its event `after`, as it comes.
///
/// # Errors
/// When it broke off before it began.
pub async fn response(mut record: watch::Receiver<Record>, after: usize) -> Result<Response, ApiError> {
    let broke = || ApiError::internal("the call with this Idempotency-Key broke off");
    let (status, headers) = {
        let begun = record.wait_for(|record| record.status > 0 || record.ended).await.map_err(|_| broke())?;
        (begun.status, begun.headers.clone())
    };
    let status = StatusCode::from_u16(status).map_err(|_| broke())?;
    let parts = futures::stream::unfold((record, after), |(mut record, next)| async move {
        let (more, known) = {
            let now = record.wait_for(|record| record.parts.len() > next || record.ended).await.ok()?;
            (now.parts.get(next..).filter(|parts| !parts.is_empty())?.concat(), now.parts.len())
        };
        Some((Ok::<_, Infallible>(Bytes::from(more)), (record, known)))
    });
    let mut response = Response::new(Body::from_stream(parts));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
