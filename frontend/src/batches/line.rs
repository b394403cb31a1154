//! One line, called.

use std::{sync::Arc, time::Duration};

use axum::{body::to_bytes, response::Response};
use baton_traces::Span;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{journal::Answered, words::Endpoint};
use crate::{
    calls::Ticket, error::ApiError, metrics::Route, openai, patience::Patience, routes::Room,
    validate::random_id,
};

/// What came of a call.
pub enum Called {
    /// An answer, or a refusal that stays.
    Answered(Answered),
    /// It cannot be taken now; when to try again, if that is known.
    Later(Option<Duration>),
}

/// Between two looks for a key of the tenant's.
const KEY_INTERVAL: Duration = Duration::from_secs(30);

/// Calls once.
///
/// # Errors
/// When the system has no randomness.
pub async fn answer(
    room: &Arc<Room>,
    tenant: &str,
    endpoint: Endpoint,
    body: Map<String, Value>,
) -> Result<Called, ApiError> {
    let Some(tenant) = room.door.tenant_named(tenant) else { return Ok(Called::Later(Some(KEY_INTERVAL))) };
    let id = random_id()?;
    let span = Span::of_call(|| "batch line".to_owned(), None);
    let tally = Arc::new(room.metrics.start(Route::Line, Some(Arc::clone(&tenant)), span));
    let patience = Ok(Patience::least());
    let ticket = Ticket { id, tenant, tally: Arc::clone(&tally), patience };
    let called = call(room, ticket, endpoint, body).await;
    let status = called.as_ref().map_or_else(|error| error.status().as_u16(), |_| 200);
    tally.answered(status);
    let body = match called {
        Ok(body) => body,
        Err(error) if [429, 503].contains(&status) => return Ok(Called::Later(error.retry_after())),
        Err(error) => serde_json::to_value(error.body()).unwrap_or_default(),
    };
    Ok(Called::Answered(Answered { status, request: id.to_string(), body }))
}

async fn call(
    room: &Arc<Room>,
    ticket: Ticket,
    endpoint: Endpoint,
    body: Map<String, Value>,
) -> Result<Value, ApiError> {
    ticket.tenant.enter(Instant::now())?;
    let (config, tenant) = (room.desk.config.clone(), ticket.tenant.name.clone());
    let kept = Arc::clone(&room.shelves.responses);
    let read = move || match endpoint {
        Endpoint::Chat => openai::read_chat(body, &config),
        Endpoint::Completions => openai::read_completion(body, &config),
        Endpoint::Responses => openai::responses::read(body, &config, &kept, &tenant),
    };
    let call = room.desk.texts.run(read).await?;
    if call.ask.parameters.stream {
        return Err(ApiError::invalid("stream", "must be false in a batch"));
    }
    whole(room.desk.answer(ticket, call).await?).await
}

async fn whole(response: Response) -> Result<Value, ApiError> {
    let unread = |_| ApiError::internal("an answer of our own cannot be read");
    // It is in memory already.
    let bytes = to_bytes(response.into_body(), usize::MAX).await.map_err(|_| unread(()))?;
    serde_json::from_slice(&bytes).map_err(|_| unread(()))
}
