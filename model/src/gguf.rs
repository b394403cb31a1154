//! Models in one `.gguf` file.
//!
//! - [`cursor`]: reads numbers and strings, never past the end
//! - [`header`]: metadata and tensor table, every field checked
//! - [`metadata`]: metadata by key and type
//! - [`vocabulary`]: the tokenizer that the metadata describes

mod cursor;
mod header;
mod metadata;
mod vocabulary;

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use header::{Header, TensorInfo};
use metadata::Metadata;

use crate::{
    Parts,
    config::ModelConfig,
    error::FormatError,
    llama,
    weights::{Stored, Weights},
};

/// Reads header and vocabulary; leaves the tensors where they are.
pub fn read(path: &Path) -> Result<Parts, FormatError> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let Header { metadata, tensors } = header::parse(BufReader::with_capacity(1 << 18, &file), bytes)?;
    let mut config = config(&metadata, &tensors)?;
    let text = vocabulary::read(&metadata, &config)?;
    config.eos_tokens = text.eos_tokens().to_vec();
    let weights = weights(&config, tensors, &Arc::new(file))?;
    llama::check(&config, &weights)?;
    Ok(Parts { config, weights, text })
}

fn config(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<ModelConfig, FormatError> {
    let architecture = metadata.text("general.architecture")?;
    if architecture != llama::NAME {
        let found = architecture.to_owned();
        return Err(FormatError::Unsupported { what: "architecture", found, supported: llama::NAME });
    }
    refuse_variants(metadata)?;
    let heads = metadata.size("llama.attention.head_count")?;
    let hidden = metadata.size("llama.embedding_length")?;
    let head_dim = match metadata.optional_size("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let vocab = metadata.texts("tokenizer.ggml.tokens")?.len();
    metadata.expect_size("llama.vocab_size", vocab, "the number of tokens")?;
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        layers: metadata.size("llama.block_count")?,
        hidden,
        heads,
        kv_heads: metadata.optional_size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: metadata.size("llama.feed_forward_length")?,
        vocab,
        context_tokens: metadata.size("llama.context_length")?,
        rope_theta: metadata.optional_float("llama.rope.freq_base")?.unwrap_or(10_000.0),
        rms_eps: metadata.float("llama.attention.layer_norm_rms_epsilon")?,
        tied_embeddings: !tensors.iter().any(|tensor| tensor.name == llama::GGUF_OUTPUT),
        eos_tokens: metadata.token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
        bos_token: metadata.token("tokenizer.ggml.bos_token_id")?,
    };
    config.check()?;
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        metadata.expect_size(key, head_dim, "the size of a head")?;
    }
    Ok(config)
}

/// What llama files may ask for and this engine does not do.
fn refuse_variants(metadata: &Metadata) -> Result<(), FormatError> {
    if let Some(found) = metadata.optional_text("llama.rope.scaling.type")?.filter(|kind| *kind != "none") {
        let found = found.to_owned();
        return Err(FormatError::Unsupported { what: "rope scaling", found, supported: "none" });
    }
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        metadata.expect_size(
            key,
            0,
            "0, because mixtures of experts and sliding windows are not supported",
        )?;
    }
    Ok(())
}

fn weights(config: &ModelConfig, tensors: Vec<TensorInfo>, file: &Arc<File>) -> Result<Weights, FormatError> {
    Weights::from_stored(tensors.into_iter().map(|tensor| {
        let unknown =
            || FormatError::UnknownTensor { tensor: tensor.name.clone(), architecture: llama::NAME };
        let name = llama::hugging_face_name(&tensor.name).ok_or_else(unknown)?;
        let stored = Stored::in_file(tensor.shape, Arc::clone(file), tensor.start, tensor.encoding);
        let stored = match name.rsplit('.').nth(1) {
            Some("q_proj") => stored.with_interleaved_heads(config.heads),
            Some("k_proj") => stored.with_interleaved_heads(config.kv_heads),
            _ => stored,
        };
        Ok((name, stored))
    }))
}

#[cfg(test)]
mod tests;
