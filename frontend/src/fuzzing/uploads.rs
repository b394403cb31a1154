//! Files that callers send: what is kept is whole, what is refused leaves nothing.

use std::{fs, io::Write, sync::LazyLock};

use axum::{
    body::Body,
    http::{Request, header::CONTENT_TYPE},
};
use tokio::runtime::{Builder, Runtime};

use super::refused;
use crate::{
    Config,
    batches::{lines, words::Endpoint},
    files::{Files, upload},
};

/// A form whose parts are bounded by `b`.
pub fn multipart(bytes: &[u8]) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("there is a runtime"));
    let (config, folder) = (Config::default(), tempfile::tempdir().expect("there is room for a folder"));
    let files = Files::read(folder.path(), &config.batches).expect("an empty folder can be read");
    let request = Request::builder().header(CONTENT_TYPE, "multipart/form-data; boundary=b");
    let request = request.body(Body::from(bytes.to_vec())).expect("the request is one");
    match RUNTIME.block_on(upload::receive(request, &files, "tenant", &config)) {
        Ok((id, file)) => {
            assert_eq!(fs::metadata(files.content(&id)).expect("it is there").len(), file.bytes);
            assert!(file.bytes <= bytes.len() as u64 && file.expires >= file.created);
        }
        Err(error) => {
            refused(&error);
            assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0, "{error}");
        }
    }
}

/// A file of calls: each line that is taken has a body, which is found again.
pub fn batch_lines(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("there is room for a file");
    file.write_all(bytes).expect("there is room for a file");
    let read = lines::read(file.path(), Endpoint::Chat, &Config::default()).expect("the file can be read");
    match read {
        Ok(lines) => {
            assert!(!lines.is_empty());
            for line in lines {
                line.body(file.as_file()).expect("a line that was taken has a body");
            }
        }
        Err(faults) => assert!(!faults.is_empty()),
    }
}
