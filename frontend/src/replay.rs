//! `Idempotency-Key`: a call that is made again joins the first one, or gets its
//! answer again, and nothing is computed twice.
//!
//! - [`record`]: an answer as it comes, for as many readers as want it
//! - [`store`]: answers by tenant and key, within bounds, and on disk if there is a place
//! - [`replicas`]: which of several coordinators keeps an answer; [`service`]: what the others ask of it
//!
//! The first call with a key runs in a task of the store, not of its connection:
//! whoever reads may leave, and is waited for as long as `detach_grace_ms`.
//! Events of streams are numbered, so that `Last-Event-ID` goes on behind one.
//! Only answers that are complete and good are kept: after anything else, the
//! next call with the key is the first again.

mod record;
mod replicas;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use baton_protocol::wire::KeyedCall;
use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::sleep};

use self::{
    record::Record,
    store::{Found, Unfinished},
};
use crate::{body, calls::Ticket, error::ApiError, openai::responses, routes::Room};

pub use self::{
    replicas::{Replicas, Seat},
    service::{Sent, serve},
    store::{Calls, Store, StoreError},
};

/// Longest key.
const MAX_KEY_BYTES: usize = 255;

static KEY: HeaderName = HeaderName::from_static("idempotency-key");
static LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// Answers a call, or the one that was made before it with the same key.
///
/// # Errors
/// When the key cannot be one, belongs to another body, or there is no room.
pub async fn answer(room: &Room, request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(key) = key(request.headers())? else {
        return match last_event(request.headers()) {
            Ok(0) => Ok(next.run(request).await),
            _ => Err(ApiError::invalid("Last-Event-ID", "needs an `Idempotency-Key`")),
        };
    };
    let (store, config) = (&room.kept, &room.desk.config);
    let after = last_event(request.headers())?;
    let (parts, body) = request.into_parts();
    let bytes = Bytes::from(body::read(Request::from_parts(parts.clone(), body), config).await?);
    let ticket = parts.extensions.get::<Ticket>().cloned().ok_or_else(|| ApiError::internal("no ticket"))?;
    let name = name_of(&ticket.tenant.name, &key);
    let asked = digest(&[parts.uri.path().as_bytes(), &bytes]);
    if !store.has(&name) && !stays(parts.uri.path(), &bytes) {
        let call = || KeyedCall {
            tenant: ticket.tenant.name.clone(),
            path: parts.uri.to_string(),
            headers: replicas::write_headers(&parts.headers),
            body: bytes.clone(),
            if_known: false,
        };
        let was_sent = parts.extensions.get::<Sent>().is_some();
        if let Some(response) = room.replicas.answer(&name, call, was_sent).await? {
            return Ok(response);
        }
    }
    let (record, is_again) = match store.find(&name, &asked)? {
        Found::There(record) => (record, true),
        Found::New(sender) => {
            let record = sender.subscribe();
            let answering = next.run(Request::from_parts(parts, Body::from(bytes)));
            let (keeper, grace) = (Arc::clone(store), config.detach_grace());
            store.spawn(async move {
                let _unfinished = Unfinished {
                    store: Arc::clone(&keeper),
                    name: name.clone(),
                    record: Arc::clone(&sender),
                };
                let good = follow(answering, &sender, grace).await && !ticket.tally.is_broken();
                keeper.close(&name, &sender, good).await;
            });
            (record, false)
        }
    };
    let mut response = record::response(record, after).await?;
    if is_again && response.status().is_success() {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Whether the answer leaves something at this coordinator, or goes on from it, so that no other can give it.
fn stays(path: &str, body: &[u8]) -> bool {
    match path {
        "/v1/batches" => true,
        "/v1/responses" => responses::is_kept(body),
        _ => false,
    }
}

/// Reads an answer to its end; false if nobody wanted it any more.
async fn follow(
    answering: impl Future<Output = Response>,
    sender: &watch::Sender<Record>,
    grace: Duration,
) -> bool {
    let read = async {
        let (head, body) = answering.await.into_parts();
        sender.send_modify(|record| record.begin(&head));
        let mut parts = body.into_data_stream();
        while let Some(Ok(part)) = parts.next().await {
            sender.send_modify(|record| record.push(&part));
        }
    };
    let left = async {
        loop {
            sender.closed().await;
            sleep(grace).await;
            if sender.is_closed() {
                break;
            }
        }
    };
    tokio::select! {
        () = read => true,
        () = left => false,
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(&KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY_BYTES).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let message = format!("must have 1 to {MAX_KEY_BYTES} visible characters");
            Err(ApiError::invalid("Idempotency-Key", message))
        }
    }
}

/// Number of the last event that the client has; 0: none.
fn last_event(headers: &HeaderMap) -> Result<usize, ApiError> {
    let Some(value) = headers.get(&LAST_EVENT) else { return Ok(0) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| ApiError::invalid("Last-Event-ID", "must be the number of an event"))
}

/// Of a tenant's call with this key.
fn name_of(tenant: &str, key: &str) -> String {
    digest(&[tenant.as_bytes(), key.as_bytes()])
}

/// SHA-256 of parts, told apart by their lengths, in hexadecimal.
fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
