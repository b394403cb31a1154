//! An answer as server-sent events, one a step.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use tracing::warn;

use super::{
    Envelope, Kind,
    logprobs::{ChatLogprobs, CompletionLogprobs},
    shapes::{ChatChunkChoice, ChatDelta, CompletionChoice, finish_word},
    usage::Usage,
};
use crate::{
    error::ApiError,
    generation::{Delta, Generation, TokenWords},
    metrics::Tally,
};

/// Writes events while the client reads them.
struct Events {
    generation: Generation,
    envelope: Envelope,
    include_usage: bool,
    tally: Arc<Tally>,
    /// Characters of token text so far, by choice.
    offsets: Vec<usize>,
    opened: bool,
    ended: bool,
}

/// The response that carries a generation which has begun.
pub fn stream(
    generation: Generation,
    envelope: Envelope,
    include_usage: bool,
    tally: Arc<Tally>,
) -> Response {
    tally.streams();
    let offsets = vec![0; envelope.choices as usize];
    let events = Events { generation, envelope, include_usage, tally, offsets, opened: false, ended: false };
    let body = futures::stream::unfold(events, |mut events| async {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    // The last header keeps nginx from collecting the stream.
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

// === impl Events ===

impl Events {
    /// The next bytes to send: at least one event, none after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        let written = self.write_next(&mut out).await;
        if let Err(error) = written {
            warn!(%error, "cannot write an event");
            out.clear();
            self.ended = true;
            self.tally.stream_ended(true);
        }
        Some(Bytes::from(out))
    }

    async fn write_next(&mut self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if !self.opened {
            self.opened = true;
            self.write_roles(out)?;
        }
        loop {
            match self.generation.next().await {
                Ok(Some(delta)) => self.write_delta(out, &delta)?,
                Ok(None) => return self.write_end(out).await,
                Err(failure) => {
                    self.ended = true;
                    self.tally.stream_ended(true);
                    return write(out, &ApiError::Failed(failure).body());
                }
            }
            if !out.is_empty() {
                return Ok(());
            }
        }
    }

    /// Chat streams say first who speaks.
    fn write_roles(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if self.envelope.kind == Kind::Completions {
            return Ok(());
        }
        for index in 0..self.envelope.choices {
            let delta = ChatDelta { role: Some("assistant"), content: Some("") };
            self.write_choice(out, &ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })?;
        }
        Ok(())
    }

    fn write_delta(&mut self, out: &mut Vec<u8>, delta: &Delta) -> serde_json::Result<()> {
        if !delta.text.is_empty() || delta.token.is_some() {
            self.write_text(out, delta.index, &delta.text, delta.token.as_slice())?;
        }
        let Some(reason) = delta.finish else { return Ok(()) };
        let (index, finish_reason) = (delta.index, Some(finish_word(reason)));
        match self.envelope.kind {
            Kind::Chat => {
                let choice =
                    ChatChunkChoice { index, delta: ChatDelta::default(), logprobs: None, finish_reason };
                self.write_choice(out, &choice)
            }
            Kind::Completions => {
                self.write_choice(out, &CompletionChoice { index, text: "", logprobs: None, finish_reason })
            }
        }
    }

    fn write_text(
        &mut self,
        out: &mut Vec<u8>,
        index: u32,
        text: &str,
        tokens: &[TokenWords],
    ) -> serde_json::Result<()> {
        match self.envelope.kind {
            Kind::Chat => {
                let logprobs = (!tokens.is_empty()).then_some(ChatLogprobs(tokens));
                let delta = ChatDelta { role: None, content: Some(text) };
                self.write_choice(out, &ChatChunkChoice { index, delta, logprobs, finish_reason: None })
            }
            Kind::Completions => {
                let offset = self.offsets[index as usize];
                let logprobs = (!tokens.is_empty()).then_some(CompletionLogprobs { tokens, offset });
                self.offsets[index as usize] += tokens.iter().map(TokenWords::chars).sum::<usize>();
                self.write_choice(out, &CompletionChoice { index, text, logprobs, finish_reason: None })
            }
        }
    }

    fn write_choice(&self, out: &mut Vec<u8>, choice: &impl Serialize) -> serde_json::Result<()> {
        let usage = self.include_usage.then_some(None);
        write(out, &self.envelope.chunk(std::slice::from_ref(&choice), usage))
    }

    async fn write_end(&mut self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        self.ended = true;
        let used = self.generation.settle().await;
        if self.include_usage {
            let usage = Usage::from(&used);
            write(out, &self.envelope.chunk::<()>(&[], Some(Some(&usage))))?;
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.tally.stream_ended(false);
        Ok(())
    }
}

/// One event. JSON has no raw line feed, so one `data:` line is enough.
fn write(out: &mut Vec<u8>, object: &impl Serialize) -> serde_json::Result<()> {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, object)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}
