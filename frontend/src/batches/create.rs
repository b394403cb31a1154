//! A batch's beginning.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::words::{Batch, BatchUsage, Counts, Endpoint, KeptBatch, Status};
use crate::{
    Config,
    error::ApiError,
    fields::Fields,
    files::{Expiry, INPUT},
    reply::unix_seconds,
    shelves::Shelves,
    validate::random_id,
};

/// What is asked for.
pub struct Asked {
    endpoint: Endpoint,
    input: String,
    metadata: Option<BTreeMap<String, String>>,
    output: Expiry,
    seconds: u64,
}

/// OpenAI's limits on notes of the client to itself.
const MAX_NOTES: usize = 16;

/// Reads a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Asked, ApiError> {
    let mut body = Fields::of_body(object);
    let endpoint = match body.require("endpoint")?.as_str().and_then(Endpoint::of) {
        Some(endpoint) => endpoint,
        None => {
            let all = Endpoint::ALL.map(Endpoint::path).join(" or ");
            return Err(body.invalid("endpoint", format!("must be {all}")));
        }
    };
    let Value::String(input) = body.require("input_file_id")? else {
        return Err(body.invalid("input_file_id", "must be a string"));
    };
    if body.require("completion_window")? != "24h" {
        return Err(body.invalid("completion_window", "must be 24h"));
    }
    let metadata = metadata(&mut body)?;
    let output = Expiry::read(body.object("output_expires_after")?, config.batches.kept_seconds)?;
    body.finish()?;
    Ok(Asked { endpoint, input, metadata, output, seconds: config.batches.batch_seconds })
}

fn metadata(body: &mut Fields) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let wrong = format!("must be an object of at most {MAX_NOTES} strings");
    match body.take("metadata") {
        None => Ok(None),
        Some(Value::Object(notes)) if notes.len() <= MAX_NOTES => {
            let note = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
            let notes = notes.into_iter().map(note).collect::<Option<_>>();
            notes.map(Some).ok_or_else(|| body.invalid("metadata", wrong))
        }
        Some(_) => Err(body.invalid("metadata", wrong)),
    }
}

/// Keeps the batch, to be worked on; returns it.
///
/// # Errors
/// When its file is not there, or the tenant has too many batches.
pub async fn begin(shelves: &Shelves, tenant: &str, asked: Asked) -> Result<Batch, ApiError> {
    let Asked { endpoint, input, metadata, output, seconds } = asked;
    let file = shelves
        .files
        .get(tenant, &input)
        .map_err(|_| ApiError::invalid("input_file_id", format!("there is no file `{input}`")))?;
    if file.purpose != INPUT {
        return Err(ApiError::invalid("input_file_id", "must be a file whose purpose is batch"));
    }
    let now = unix_seconds();
    let batch = Batch {
        id: format!("batch_{}", random_id()?),
        object: "batch".to_owned(),
        endpoint,
        errors: None,
        input_file_id: input,
        completion_window: "24h".to_owned(),
        status: Status::Validating,
        output_file_id: None,
        error_file_id: None,
        created_at: now,
        in_progress_at: None,
        expires_at: now.saturating_add(seconds),
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        expired_at: None,
        cancelling_at: None,
        cancelled_at: None,
        request_counts: Counts::default(),
        usage: BatchUsage::default(),
        metadata,
    };
    let kept = KeptBatch {
        batch: batch.clone(),
        output: format!("file-{}", random_id()?),
        errors: format!("file-{}", random_id()?),
        output_seconds: output.0,
    };
    shelves.batches.add(tenant, kept).await?;
    Ok(batch)
}
