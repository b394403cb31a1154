//! The bytes of a call's body, within their limits.

use axum::{
    body::Body,
    http::{
        HeaderMap, Request,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use futures::StreamExt;

use crate::{Config, error::ApiError};

/// Reads a JSON body to its end.
///
/// # Errors
/// When it is not declared as JSON, too large, too slow or broken off.
pub async fn read(request: Request<Body>, config: &Config) -> Result<Vec<u8>, ApiError> {
    let (head, body) = request.into_parts();
    if !is_plain_json(&head.headers) {
        return Err(ApiError::MediaType { wanted: "application/json" });
    }
    let limit = config.max_body_bytes;
    if declared_bytes(&head.headers).is_some_and(|bytes| bytes > limit) {
        return Err(ApiError::BodySize { limit, setting: "max_body_bytes" });
    }
    let timeout = config.body_timeout();
    tokio::time::timeout(timeout, collect(body, limit))
        .await
        .unwrap_or(Err(ApiError::BodyTimeout { limit: timeout }))
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| ApiError::BodyBroken)?;
        if bytes.len() + part.len() > limit {
            return Err(ApiError::BodySize { limit, setting: "max_body_bytes" });
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn is_plain_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"));
    essence && headers.get(CONTENT_ENCODING).is_none_or(|coding| coding == "identity")
}

fn declared_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
