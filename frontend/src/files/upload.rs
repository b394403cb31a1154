//! A file on its way in: a form whose parts come in any order, straight to disk.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use bytes::Bytes;
use futures::StreamExt;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::{Map, Value};
use tracing::warn;

use super::{Expiry, Files, INPUT, StoredFile};
use crate::{Config, error::ApiError, fields::Fields, reply::unix_seconds, validate::random_id};

/// What a form said so far.
#[derive(Default)]
struct Form {
    file: Option<(String, u64)>,
    /// Its other fields, as an object.
    fields: Map<String, Value>,
    expiry: Map<String, Value>,
}

/// A content being written; deleted when dropped before it is kept.
struct Content {
    path: PathBuf,
    is_kept: bool,
}

/// Longest text of a form's field.
const MAX_TEXT: u64 = 1024;

/// Longest name of a file.
const MAX_NAME: usize = 255;

/// Reads a form to its end; returns the file's id and what is to be kept of it. Its content is on disk.
///
/// # Errors
/// What is wrong with the form, or that there is no room.
pub async fn receive(
    request: Request<Body>,
    files: &Files,
    tenant: &str,
    config: &Config,
) -> Result<(String, StoredFile), ApiError> {
    files.check_room(tenant, 0)?;
    let id = format!("file-{}", random_id()?);
    let mut content = Content { path: files.content(&id), is_kept: false };
    let form = multipart(request, config)?;
    let limit = config.request_timeout();
    let form = tokio::time::timeout(limit, read(form, &content.path, config))
        .await
        .unwrap_or(Err(ApiError::BodyTimeout { limit }))?;
    let missing = |param: &str| ApiError::Missing { param: param.to_owned() };
    let (filename, bytes) = form.file.ok_or_else(|| missing("file"))?;
    let mut fields = Fields::of_body(form.fields);
    match fields.require("purpose")?.as_str() {
        Some(INPUT) => {}
        _ => return Err(fields.invalid("purpose", "must be batch: files are for batches alone")),
    }
    let expiry = Fields::of_value(Value::Object(form.expiry), "expires_after".to_owned())?;
    let expiry = Expiry::read(expiry, config.batches.kept_seconds)?;
    files.check_room(tenant, bytes)?;
    content.is_kept = true;
    let file = StoredFile {
        filename,
        purpose: INPUT.to_owned(),
        bytes,
        created: unix_seconds(),
        expires: expiry.at(),
    };
    Ok((id, file))
}

fn multipart(request: Request<Body>, config: &Config) -> Result<Multipart<'static>, ApiError> {
    let (head, body) = request.into_parts();
    let wrong = || ApiError::MediaType { wanted: "multipart/form-data" };
    if head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(wrong());
    }
    let kind = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).ok_or_else(wrong)?;
    let boundary = multer::parse_boundary(kind).map_err(|_| wrong())?;
    let file = config.batches.max_file_bytes as u64;
    let limits =
        SizeLimit::new().whole_stream(file + 16 * MAX_TEXT).per_field(MAX_TEXT).for_field("file", file);
    let constraints = Constraints::new().size_limit(limits);
    Ok(Multipart::with_constraints(body.into_data_stream(), boundary, constraints))
}

async fn read(mut parts: Multipart<'static>, path: &Path, config: &Config) -> Result<Form, ApiError> {
    let mut form = Form::default();
    loop {
        let part = patiently(parts.next_field(), config).await?;
        let Some(part) = part.map_err(|error| form_error(&error, config))? else { return Ok(form) };
        let name = part.name().unwrap_or_default().to_owned();
        let is_twice = match name.as_str() {
            "file" => form.file.is_some(),
            name => form.fields.contains_key(name),
        };
        if is_twice {
            return Err(ApiError::invalid(name, "given twice"));
        }
        match name.as_str() {
            "file" => {
                let filename = part.file_name().unwrap_or("file").chars().take(MAX_NAME).collect();
                form.file = Some((filename, write(part, path, config).await?));
            }
            "purpose" => drop(form.fields.insert(name, Value::String(text(part, config).await?))),
            "expires_after[anchor]" => {
                form.expiry.insert("anchor".to_owned(), Value::String(text(part, config).await?));
            }
            "expires_after[seconds]" => {
                let text = text(part, config).await?;
                let seconds = text.parse::<u32>().map_or(Value::String(text), Value::from);
                form.expiry.insert("seconds".to_owned(), seconds);
            }
            _ => return Err(ApiError::Unsupported { param: name }),
        }
    }
}

async fn text(part: Field<'_>, config: &Config) -> Result<String, ApiError> {
    patiently(part.text(), config).await?.map_err(|error| form_error(&error, config))
}

/// Writes a part to disk, a piece at a time; returns its bytes.
async fn write(mut part: Field<'_>, path: &Path, config: &Config) -> Result<u64, ApiError> {
    let mut file = blocking({
        let path = path.to_owned();
        move || fs::File::create_new(path)
    })
    .await?;
    let mut bytes = 0;
    while let Some(piece) = patiently(part.next(), config).await? {
        let piece: Bytes = piece.map_err(|error| form_error(&error, config))?;
        bytes += piece.len() as u64;
        file = blocking(move || file.write_all(&piece).map(|()| file)).await?;
    }
    Ok(bytes)
}

/// What takes long for a client is waited for only so long.
async fn patiently<T>(step: impl Future<Output = T>, config: &Config) -> Result<T, ApiError> {
    let limit: Duration = config.body_timeout();
    tokio::time::timeout(limit, step).await.map_err(|_| ApiError::BodyTimeout { limit })
}

/// Runs what waits for the disk.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.flatten().map_err(|error| {
        warn!(%error, "frontend.state_dir cannot be used");
        ApiError::internal("the server cannot read or write what it keeps")
    })
}

fn form_error(error: &multer::Error, config: &Config) -> ApiError {
    let limit = config.batches.max_file_bytes;
    match error {
        multer::Error::FieldSizeExceeded { field_name: Some(name), .. } if name != "file" => {
            ApiError::invalid(name, format!("must have at most {MAX_TEXT} bytes"))
        }
        multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => {
            ApiError::BodySize { limit, setting: "batches.max_file_bytes" }
        }
        multer::Error::StreamReadFailed(_) => ApiError::BodyBroken,
        error => ApiError::Form { message: error.to_string() },
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(fs::remove_file(&self.path));
        }
    }
}
