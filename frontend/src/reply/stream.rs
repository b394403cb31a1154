//! An answer as server-sent events, one a step.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_TYPE, TRAILER},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::{Events, Facts, Reply, timing::timing};
use crate::{error::ApiError, generation::Generation, metrics::Tally};

/// Writes events while the client reads them.
struct Stream {
    generation: Generation,
    facts: Facts,
    reply: Box<dyn Reply>,
    tally: Arc<Tally>,
    begun: bool,
    ended: bool,
    /// What comes behind the last event.
    trailers: Option<HeaderMap>,
    /// Among `max_streams`.
    _place: OwnedSemaphorePermit,
}

/// The response that carries a generation which has begun.
pub fn stream(
    generation: Generation,
    facts: Facts,
    reply: Box<dyn Reply>,
    tally: Arc<Tally>,
    place: OwnedSemaphorePermit,
) -> Response {
    tally.streams();
    let stream =
        Stream { generation, facts, reply, tally, begun: false, ended: false, trailers: None, _place: place };
    // Boxed, since every event moves it into its future and out again.
    let body = futures::stream::unfold(Box::new(stream), |mut stream| async {
        let frame = match stream.next().await {
            Some(bytes) => Frame::data(bytes),
            None => Frame::trailers(stream.trailers.take()?),
        };
        Some((Ok::<_, Infallible>(frame), stream))
    });
    // The last header keeps nginx from collecting the stream.
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
        (TRAILER.as_str(), super::SERVER_TIMING.as_str()),
    ];
    (headers, Body::new(StreamBody::new(body))).into_response()
}

// === impl Stream ===

impl Stream {
    /// The next bytes to send: at least one event, none after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut events = Events::default();
        if let Err(error) = self.write_next(&mut events).await {
            warn!(%error, "cannot write an event");
            events.0.clear();
            self.end(true);
        }
        Some(Bytes::from(events.0))
    }

    async fn write_next(&mut self, events: &mut Events) -> serde_json::Result<()> {
        if !self.begun {
            self.begun = true;
            self.reply.begin(&self.facts, &self.generation.used(), events)?;
        }
        loop {
            match self.generation.next().await {
                Ok(Some(delta)) => self.reply.step(&self.facts, &delta, events)?,
                Ok(None) => {
                    let used = self.generation.settle().await;
                    self.trailers = timing(&used);
                    self.end(false);
                    return self.reply.end(&self.facts, &used, events);
                }
                Err(failure) => {
                    self.end(true);
                    return self.reply.fail(&self.facts, &ApiError::Failed(failure), events);
                }
            }
            if !events.0.is_empty() {
                return Ok(());
            }
        }
    }

    fn end(&mut self, broken: bool) {
        self.ended = true;
        self.tally.stream_ended(broken);
    }
}
