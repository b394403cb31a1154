//! Models as Hugging Face publishes them: a directory of JSON and safetensors files.
//!
//! - [`settings`]: `config.json` and `generation_config.json`
//! - [`shards`]: one or several `*.safetensors` files
//! - [`vocabulary`]: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`

mod settings;
mod shards;
mod vocabulary;

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{
    ModelConfig, Parts,
    error::{FormatError, ModelError},
    families, read_bounded,
};

/// No JSON file but the tokenizer is larger than this.
const MAX_JSON_BYTES: u64 = 1 << 24;

/// Reads everything but the tensors, which stay where they are.
pub fn read(directory: &Path) -> Result<Parts, ModelError> {
    let invalid = |source| ModelError::Invalid { path: directory.to_owned(), source: Box::new(source) };
    read_parts(directory).map_err(invalid)
}

/// Reads the shape alone.
pub fn shape(directory: &Path) -> Result<ModelConfig, ModelError> {
    let invalid = |source| ModelError::Invalid { path: directory.to_owned(), source: Box::new(source) };
    settings::read(directory).map(|(_, config)| config).map_err(invalid)
}

fn read_parts(directory: &Path) -> Result<Parts, FormatError> {
    let (family, mut config) = settings::read(directory)?;
    let text = vocabulary::read(directory, &config)?;
    config.eos_tokens = text.eos_tokens().to_vec();
    let mut weights = shards::read(directory)?;
    families::arrange(family, &config, &mut weights)?;
    if family.norms_less_one {
        weights.complete_norms();
    }
    Ok(Parts { config, weights, text })
}

/// Reads a JSON file of the directory.
fn json<T: DeserializeOwned>(directory: &Path, file: &str) -> Result<T, FormatError> {
    optional_json(directory, file)?.ok_or_else(|| FormatError::MissingFile { file: file.to_owned() })
}

/// Reads a JSON file of the directory, if it is there.
fn optional_json<T: DeserializeOwned>(directory: &Path, file: &str) -> Result<Option<T>, FormatError> {
    let Some(bytes) = optional_file(directory, file, MAX_JSON_BYTES)? else { return Ok(None) };
    let wrong = |source| FormatError::Json { file: file.to_owned(), source };
    serde_json::from_slice(&bytes).map_err(wrong).map(Some)
}

fn optional_file(directory: &Path, file: &str, limit: u64) -> Result<Option<Vec<u8>>, FormatError> {
    match read_bounded(&directory.join(file), limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(FormatError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
