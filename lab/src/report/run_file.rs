//! Runs as JSON.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    measure::{Run, Summary},
    traffic::Workload,
};

/// A file of runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Of this file's form: 1.
    pub format: u32,
    /// In their order.
    pub runs: Vec<Measured>,
}

/// A workload, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured, in the user's words.
    pub name: String,
    /// Where it was asked.
    pub url: String,
    /// As the server names it.
    pub model: String,
    /// What was asked.
    pub workload: Workload,
    /// The figures.
    pub summary: Summary,
    /// All of it.
    pub run: Run,
}

/// Why a file of runs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No file.
    #[error("cannot read or write {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of something else.
    #[error("{path} is not a file of runs", path = path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file of another version.
    #[error("{path} has form {found}; this program knows form {FORMAT}", path = path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its form.
        found: u32,
    },
}

const FORMAT: u32 = 1;

// === impl RunFile ===

impl RunFile {
    /// Of these runs.
    pub fn new(runs: Vec<Measured>) -> Self {
        Self { format: FORMAT, runs }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        save_json(path, self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let found: Self = load_json(path)?;
        if found.format != FORMAT {
            return Err(FileError::Version { path: path.to_owned(), found: found.format });
        }
        Ok(found)
    }
}

pub(crate) fn save_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let form = |source| FileError::Form { path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(form)?;
    std::fs::write(path, text).map_err(|source| FileError::File { path: path.to_owned(), source })
}

pub(crate) fn load_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = std::fs::read(path).map_err(|source| FileError::File { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| FileError::Form { path: path.to_owned(), source })
}
