//! What a model is on disk and as text: weights, configuration, tokenizer, chat template.
//!
//! - [`catalog`]: models by name, where they lie on this machine, and how they get there
//! - [`config`]: what the engine must know of a model
//! - [`weights`]: tensors under Hugging Face names, read when asked for
//! - [`text`]: tokenizer, chat template, detokenizer; travels between nodes as bytes
//! - [`grammar`]: what an answer must be, as tokens that may come next
//! - `gguf`: models in one `.gguf` file
//! - `directory`: models as Hugging Face publishes them
//! - `families`: one row for each family of decoders; names and shapes of their tensors
//! - [`error`]: everything that can be wrong with a model
//!
//! Model files are data from strangers. Every count, length and offset in them
//! is checked before it is used, files are read and never mapped, and nothing
//! in them is executed but the chat template, which runs with fuel.

pub mod catalog;
pub mod config;
mod directory;
pub mod error;
mod families;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gguf;
pub mod grammar;
pub mod text;
pub mod weights;

use std::{io::Read, path::Path, sync::Arc};

pub use catalog::{Progress, default_cache, list, name_of, pull, resolve};
pub use config::{Activation, LayerAttention, ModelConfig, Norms, QkNorm, Rotary};
pub use error::{FormatError, ModelError, PullError};
pub use grammar::{GrammarError, GrammarState, Grammars};
pub use text::{Detokenizer, ModelText, TextError};
pub use weights::{Blocks, Matrix, Rows, Weights};

/// A model, ready to be given to an engine.
pub struct Model {
    /// Name under which it is served unless the user chooses another.
    pub name: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Its tokenizer and chat template.
    pub text: Arc<ModelText>,
    /// Hash of configuration and weights, as hex. Nodes exchange KV only if theirs are equal.
    pub fingerprint: String,
}

/// What the readers of the two formats bring home.
struct Parts {
    config: ModelConfig,
    weights: Weights,
    text: ModelText,
}

/// Loads a `.gguf` file, or a directory with `config.json`, `*.safetensors` and `tokenizer.json`.
///
/// Weights are checked and hashed here but converted only in [`Weights::matrix`].
///
/// # Errors
/// Names the file and the thing in it that cannot be used.
pub fn load(path: &Path) -> Result<Model, ModelError> {
    load_with(path, &|_, _| ())
}

/// As [`load`]. `progress` hears of bytes hashed so far and of all there are, often and from several threads.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Model, ModelError> {
    let invalid = |source| ModelError::Invalid { path: path.to_owned(), source: Box::new(source) };
    let metadata = std::fs::metadata(path).map_err(|source| ModelError::io(path, source))?;
    let Parts { config, weights, text } =
        if metadata.is_dir() { directory::read(path)? } else { gguf::read(path).map_err(invalid)? };
    let fingerprint = weights.fingerprint(&config, progress).map_err(invalid)?;
    Ok(Model { name: name_of(path), config, weights, text: Arc::new(text), fingerprint })
}

/// Reads the shape alone of a model from `config.json` in `directory`.
///
/// # Errors
/// Names the thing in it that cannot be used.
pub fn shape(directory: &Path) -> Result<ModelConfig, ModelError> {
    directory::shape(directory)
}

/// Reads a file that must not be larger than `limit_bytes`.
fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FormatError> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(FormatError::Limit { what: "file", found: bytes.len() as u64, limit: limit_bytes });
    }
    Ok(bytes)
}

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "tests need more of it than the fuzzer"))]
mod fixture;
#[cfg(test)]
mod golden;
