//! Answers of a batch, as they come: a file of those that are good, and one of the others.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

use super::words::{BatchUsage, Counts};

/// Both files.
pub struct Journal {
    output: Arc<File>,
    errors: Arc<File>,
    /// Lines that were there when it was opened.
    pub done: HashSet<String>,
    pub counts: Counts,
    pub usage: BatchUsage,
    /// Of both files.
    pub bytes: u64,
}

/// How a line ended.
pub struct Outcome {
    pub custom_id: String,
    pub answer: Result<Answered, Unanswered>,
}

/// With an answer or a refusal.
pub struct Answered {
    pub status: u16,
    pub request: String,
    pub body: Value,
}

/// Why it was not called at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    Expired,
    Cancelled,
    Full,
}

// === impl Journal ===

impl Journal {
    /// Opens both files, which may be there from before. A last line that was cut off goes.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn open(output: &Path, errors: &Path) -> io::Result<Self> {
        let mut done = HashSet::new();
        let (mut counts, mut usage, mut bytes) = (Counts::default(), BatchUsage::default(), 0);
        let files = [(output, &mut counts.completed), (errors, &mut counts.failed)].map(|(path, count)| {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            let mut length = 0;
            let (mut lines, mut line) = (BufReader::new(&mut file), Vec::new());
            while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
                let value: Value = serde_json::from_slice(&line)?;
                done.extend(value["custom_id"].as_str().map(str::to_owned));
                usage.add(&value["response"]["body"]["usage"]);
                *count += 1;
                length += line.len() as u64;
                line.clear();
            }
            file.set_len(length)?;
            bytes += length;
            io::Result::Ok(Arc::new(file))
        });
        let [output, errors] = files;
        Ok(Self { output: output?, errors: errors?, done, counts, usage, bytes })
    }

    /// What is to be written, and where.
    pub fn note(&mut self, outcome: &Outcome) -> io::Result<(Arc<File>, Vec<u8>)> {
        let Outcome { custom_id, answer } = outcome;
        let id = format!("batch_req_{custom_id}");
        let (is_good, value) = match answer {
            Ok(Answered { status, request, body }) => {
                self.usage.add(&body["usage"]);
                let response = json!({ "status_code": status, "request_id": request, "body": body });
                let line = json!({ "id": id, "custom_id": custom_id, "response": response, "error": null });
                ((200..300).contains(status), line)
            }
            Err(why) => {
                let error = json!({ "code": why.code(), "message": why.message() });
                (false, json!({ "id": id, "custom_id": custom_id, "response": null, "error": error }))
            }
        };
        let mut text = serde_json::to_vec(&value)?;
        text.push(b'\n');
        self.bytes += text.len() as u64;
        let (file, count) = if is_good {
            (&self.output, &mut self.counts.completed)
        } else {
            (&self.errors, &mut self.counts.failed)
        };
        *count += 1;
        Ok((Arc::clone(file), text))
    }
}

/// Writes to the end of a file.
///
/// # Errors
/// When it cannot.
pub fn append((file, text): (Arc<File>, Vec<u8>)) -> io::Result<()> {
    (&*file).write_all(&text)
}

/// Bytes of a file; none if it is empty, which is then gone.
///
/// # Errors
/// When the disk cannot be read.
pub fn close(path: PathBuf) -> io::Result<Option<u64>> {
    let bytes = std::fs::metadata(&path)?.len();
    if bytes == 0 {
        std::fs::remove_file(path)?;
    }
    Ok((bytes > 0).then_some(bytes))
}

// === impl Unanswered ===

impl Unanswered {
    fn code(self) -> &'static str {
        match self {
            Self::Expired => "batch_expired",
            Self::Cancelled => "batch_cancelled",
            Self::Full => "storage_full",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Expired => "the batch's time was over before this line was answered",
            Self::Cancelled => "the batch was cancelled before this line was answered",
            Self::Full => "there is no room for its answer: delete files (frontend.batches.max_bytes)",
        }
    }
}
