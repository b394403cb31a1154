//! The bytes of a call's body, within their limits.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    http::{
        HeaderMap, Request,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
    },
};
use futures::StreamExt;

use crate::{Config, error::ApiError};

/// Of a body that is too large, so many times the limit is read over, for so long.
const PASSED_OVER: usize = 4;
const PASSING: Duration = Duration::from_secs(1);

/// Reads a JSON body to its end.
///
/// # Errors
/// When it is not declared as JSON, too large, too slow or broken off.
pub async fn read(request: Request<Body>, config: &Config) -> Result<Vec<u8>, ApiError> {
    let (head, body) = request.into_parts();
    if !is_plain_json(&head.headers) {
        return Err(ApiError::MediaType { wanted: "application/json" });
    }
    let (limit, timeout) = (config.max_body_bytes, config.body_timeout());
    let mut parts = body.into_data_stream();
    if declared_bytes(&head.headers).is_some_and(|bytes| bytes > limit) {
        if !head.headers.contains_key(EXPECT) {
            pass_over(&mut parts, limit).await;
        }
        return Err(ApiError::BodySize { limit, setting: "max_body_bytes" });
    }
    tokio::time::timeout(timeout, collect(&mut parts, limit))
        .await
        .unwrap_or(Err(ApiError::BodyTimeout { limit: timeout }))
}

async fn collect(parts: &mut BodyDataStream, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| ApiError::BodyBroken)?;
        if bytes.len() + part.len() > limit {
            drop(bytes);
            pass_over(parts, limit).await;
            return Err(ApiError::BodySize { limit, setting: "max_body_bytes" });
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// Reads what is too much, within bounds, and keeps nothing of it: a connection that is closed while its
/// caller writes may be broken before the refusal is read.
async fn pass_over(parts: &mut BodyDataStream, limit: usize) {
    let mut left = PASSED_OVER * limit;
    let passing = async {
        while let Some(Ok(part)) = parts.next().await {
            left = left.saturating_sub(part.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whoever sends nothing is told at once after this.
    let _ = tokio::time::timeout(PASSING, passing).await;
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
