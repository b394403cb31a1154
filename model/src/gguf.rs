//! Models in one `.gguf` file.
//!
//! - [`cursor`]: reads numbers and strings, never past the end
//! - [`header`]: metadata and tensor table, every field checked
//! - [`metadata`]: metadata by key and type
//! - [`settings`]: the configuration that the metadata describes
//! - [`vocabulary`]: the tokenizer that the metadata describes

mod cursor;
mod header;
mod metadata;
mod settings;
mod vocabulary;

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use header::{Header, TensorInfo};
use settings::RopeFactors;

use crate::{
    Parts,
    config::ModelConfig,
    error::FormatError,
    families::{self, Family},
    weights::{Stored, Weights},
};

/// Reads header and vocabulary; leaves the tensors where they are.
pub fn read(path: &Path) -> Result<Parts, FormatError> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let Header { metadata, mut tensors } = header::parse(BufReader::with_capacity(1 << 18, &file), bytes)?;
    let file = Arc::new(file);
    let factors = rope_factors(&mut tensors, &file)?;
    let (family, mut config) = settings::read(&metadata, &tensors, factors)?;
    let text = vocabulary::read(&metadata, family, &config)?;
    config.eos_tokens = text.eos_tokens().to_vec();
    let mut weights = weights(family, &config, tensors, &file)?;
    families::arrange(family, &config, &mut weights)?;
    Ok(Parts { config, weights, text })
}

/// Takes out the tensors that are configuration.
fn rope_factors(tensors: &mut Vec<TensorInfo>, file: &Arc<File>) -> Result<RopeFactors, FormatError> {
    let mut factors = RopeFactors::default();
    for (name, place) in [
        ("rope_freqs.weight", &mut factors.always),
        ("rope_factors_short.weight", &mut factors.short),
        ("rope_factors_long.weight", &mut factors.long),
    ] {
        let Some(index) = tensors.iter().position(|tensor| tensor.name == name) else { continue };
        let tensor = tensors.remove(index);
        if tensor.shape.len() != 1 {
            let found = tensor.shape.len();
            return Err(FormatError::Rank { tensor: tensor.name, found, expected: 1 });
        }
        *place = Some(stored(&tensor, file).vector(name)?);
    }
    Ok(factors)
}

fn weights(
    family: &'static Family,
    config: &ModelConfig,
    tensors: Vec<TensorInfo>,
    file: &Arc<File>,
) -> Result<Weights, FormatError> {
    Weights::from_stored(tensors.into_iter().map(|tensor| {
        let architecture = family.gguf.unwrap_or_default();
        let unknown = || FormatError::UnknownTensor { tensor: tensor.name.clone(), architecture };
        let name = families::hugging_face_name(family, config, &tensor.name).ok_or_else(unknown)?;
        let stored = stored(&tensor, file);
        let stored = match name.rsplit('.').nth(1) {
            Some("q_proj") if family.interleaved_gguf => stored.with_interleaved_heads(config.heads),
            Some("k_proj") if family.interleaved_gguf => stored.with_interleaved_heads(config.kv_heads),
            _ => stored,
        };
        Ok((name, stored))
    }))
}

fn stored(tensor: &TensorInfo, file: &Arc<File>) -> Stored {
    Stored::in_file(tensor.shape.clone(), Arc::clone(file), tensor.start, tensor.encoding)
}

#[cfg(test)]
mod tests;
