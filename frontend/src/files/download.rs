//! A file on its way out, a piece at a time.

use std::{fs::File, io::Read, path::PathBuf};

use axum::{
    body::Body,
    http::header::{CONTENT_LENGTH, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

use super::upload::blocking;
use crate::error::ApiError;

const PIECE: usize = 256 << 10;

/// The content as a response.
///
/// # Errors
/// When it cannot be read.
pub async fn response(path: PathBuf) -> Result<Response, ApiError> {
    let (file, bytes) = blocking(move || {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    })
    .await?;
    let pieces = futures::stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let read = blocking(move || {
            let mut piece = vec![0; PIECE];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok((piece, file))
        });
        match read.await {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, file)) => Some((Ok(Bytes::from(piece)), Some(file))),
            // The client sees that it is cut off.
            Err(error) => Some((Err(error), None)),
        }
    });
    let headers =
        [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, bytes.to_string())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
