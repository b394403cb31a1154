//! What a batch's file asks.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use serde_json::{Map, Value};

use super::words::{Endpoint, Fault};
use crate::{Config, error::ApiError, fields::Fields, json};

/// Where a line lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub custom_id: String,
    at: u64,
    bytes: usize,
}

/// Most faults that are told of.
const MAX_FAULTS: usize = 32;

/// Longest name that a client gives a line.
const MAX_ID_BYTES: usize = 256;

/// The lines of a file, each of which is a call of `endpoint` with an id of its own.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path, endpoint: Endpoint, config: &Config) -> io::Result<Result<Vec<Line>, Vec<Fault>>> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut lines, mut faults, mut known) = (Vec::new(), Vec::new(), HashSet::new());
    let (mut at, mut text) = (0, Vec::new());
    let limit = config.max_body_bytes;
    for number in 1.. {
        text.clear();
        let bytes = (&mut file).take(limit as u64 + 1).read_until(b'\n', &mut text)?;
        if bytes == 0 || faults.len() == MAX_FAULTS {
            break;
        }
        if bytes > limit {
            let error = ApiError::BodySize { limit, setting: "max_body_bytes" };
            faults.push(Fault::of(&error, Some(number)));
            break;
        }
        if !text.trim_ascii().is_empty() {
            match check(&text, endpoint, &mut known) {
                Ok(custom_id) => lines.push(Line { custom_id, at, bytes }),
                Err(error) => faults.push(Fault::of(&error, Some(number))),
            }
        }
        let most = config.batches.max_lines;
        if lines.len() > most {
            let message = format!("has more than {most} lines (frontend.batches.max_lines)");
            faults.push(Fault::of(&ApiError::invalid("input_file_id", message), None));
            break;
        }
        at += bytes as u64;
    }
    if lines.is_empty() && faults.is_empty() {
        faults.push(Fault::of(&ApiError::invalid("input_file_id", "has no lines"), None));
    }
    Ok(if faults.is_empty() { Ok(lines) } else { Err(faults) })
}

/// A line's id.
fn check(text: &[u8], endpoint: Endpoint, known: &mut HashSet<String>) -> Result<String, ApiError> {
    let mut line = Fields::of_body(json::parse(text)?);
    let Value::String(id) = line.require("custom_id")? else {
        return Err(line.invalid("custom_id", "must be a string"));
    };
    if id.len() > MAX_ID_BYTES {
        return Err(line.invalid("custom_id", format!("must have at most {MAX_ID_BYTES} bytes")));
    }
    if line.require("method")? != "POST" {
        return Err(line.invalid("method", "must be POST"));
    }
    if line.require("url")? != endpoint.path() {
        return Err(line.invalid("url", format!("must be the batch's: {}", endpoint.path())));
    }
    if !line.require("body")?.is_object() {
        return Err(line.invalid("body", "must be an object"));
    }
    line.finish()?;
    if !known.insert(id.clone()) {
        return Err(ApiError::invalid("custom_id", format!("`{id}` is there twice")));
    }
    Ok(id)
}

// === impl Line ===

impl Line {
    /// The body of its call.
    ///
    /// # Errors
    /// When it cannot be read again.
    pub fn body(&self, file: &File) -> io::Result<Map<String, Value>> {
        let mut text = vec![0; self.bytes];
        file.read_exact_at(&mut text, self.at)?;
        let mut line = json::parse(&text).map_err(io::Error::other)?;
        match line.remove("body") {
            Some(Value::Object(body)) => Ok(body),
            _ => Err(io::Error::other("the file has changed")),
        }
    }
}

// === impl Fault ===

impl Fault {
    /// What is wrong with a line, or with the file.
    pub fn of(error: &ApiError, line: Option<usize>) -> Self {
        let (param, code) = error.param_and_code();
        Self { code: code.to_owned(), message: error.to_string(), param: param.map(str::to_owned), line }
    }
}
