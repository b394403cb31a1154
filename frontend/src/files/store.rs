//! What is kept of files: a record on a shelf, and the content beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    batches::BatchLimits,
    error::ApiError,
    reply::unix_seconds,
    shelf::{Shelf, Shelved},
};

/// All files.
pub struct Files {
    shelf: Arc<Shelf<StoredFile>>,
    folder: PathBuf,
    limits: BatchLimits,
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredFile {
    pub filename: String,
    pub purpose: String,
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
    pub expires: u64,
}

const ENDING: &str = "content";

// === impl Files ===

impl Files {
    /// The files in a folder.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn read(folder: &Path, limits: &BatchLimits) -> io::Result<Self> {
        let shelf = Shelf::read(folder.to_owned())?;
        Ok(Self { shelf, folder: folder.to_owned(), limits: limits.clone() })
    }

    /// Deletes contents that belong to no file and are not `wanted`: of uploads that broke off.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn sweep_contents(&self, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let known: Vec<_> = self.shelf.all().into_iter().map(|file| file.id).collect();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_content = path.extension().is_some_and(|ending| ending == ENDING);
            let id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if is_content && !known.iter().any(|known| known == id) && !wanted(id) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Where the content of a file is.
    pub fn content(&self, id: &str) -> PathBuf {
        self.folder.join(id).with_extension(ENDING)
    }

    /// The tenant's file of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, tenant: &str, id: &str) -> Result<Arc<StoredFile>, ApiError> {
        let file = self.shelf.get(tenant, id).filter(|file| file.expires > unix_seconds());
        file.ok_or_else(|| ApiError::Absent { what: "file", id: id.to_owned() })
    }

    /// The tenant's files, the newest first.
    pub fn of_tenant(&self, tenant: &str) -> Vec<Shelved<StoredFile>> {
        let now = unix_seconds();
        let mut files = self.shelf.of_tenant(tenant);
        files.retain(|file| file.record.expires > now);
        files
    }

    /// Whether the tenant may have `more` bytes in one more file.
    ///
    /// # Errors
    /// When not.
    pub fn check_room(&self, tenant: &str, more: u64) -> Result<(), ApiError> {
        let files = self.of_tenant(tenant);
        let (limit, count) = (self.limits.max_bytes, self.limits.max_files);
        if files.len() >= count {
            return Err(ApiError::Full { limit: count as u64, what: "files", setting: "max_files" });
        }
        if files.iter().map(|file| file.record.bytes).sum::<u64>() + more > limit {
            return Err(ApiError::Full { limit, what: "bytes of files", setting: "max_bytes" });
        }
        Ok(())
    }

    /// Adds a file whose content is there.
    pub async fn add(&self, tenant: &str, id: &str, file: StoredFile) {
        // Fails only when the runtime ends.
        drop(self.shelf.put(tenant, id, file).await);
    }

    /// Deletes files.
    pub fn remove(&self, goes: impl Fn(&Shelved<StoredFile>) -> bool) {
        for file in self.shelf.retain(|file| !goes(file)) {
            let content = self.content(&file.id);
            // The record is gone already: what stays is swept at the next start.
            self.shelf.later(move || drop(fs::remove_file(content)));
        }
    }

    /// Waits until the disk has every record.
    pub async fn settle(&self) {
        self.shelf.settle().await;
    }
}
