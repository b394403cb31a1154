//! `config.json` and `generation_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use crate::{config::ModelConfig, error::FormatError, llama};

/// The fields of `config.json` that matter; code and everything else in it is ignored.
#[derive(Deserialize)]
struct Settings {
    model_type: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<Json>,
    #[serde(flatten)]
    ends: Ends,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

/// The tokens at the ends of a text, in either file.
#[derive(Deserialize, Default)]
struct Ends {
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Reads the configuration.
pub fn read(directory: &Path) -> Result<ModelConfig, FormatError> {
    // The name comes first: other architectures lack fields that this one has.
    let json: Json = super::json(directory, "config.json")?;
    let found = json.get("model_type").and_then(Json::as_str).unwrap_or("(none)");
    if found != llama::NAME {
        let found = found.to_owned();
        return Err(FormatError::Unsupported { what: "architecture", found, supported: llama::NAME });
    }
    let wrong = |source| FormatError::Json { file: "config.json".to_owned(), source };
    let settings = Settings::deserialize(json).map_err(wrong)?;
    let generation: Option<Ends> = super::optional_json(directory, "generation_config.json")?;
    settings.refuse_variants()?;
    let config = settings.into_config(generation.unwrap_or_default());
    config.check()?;
    Ok(config)
}

// === impl Settings ===

impl Settings {
    /// What llama-shaped models may ask for and this engine does not do.
    fn refuse_variants(&self) -> Result<(), FormatError> {
        let refuse =
            |what, found: String, supported| Err(FormatError::Unsupported { what, found, supported });
        if let Some(found) = self.hidden_act.as_ref().filter(|name| *name != "silu") {
            return refuse("activation", found.clone(), "silu");
        }
        let ropes = self.rope_scaling.iter().chain(&self.rope_parameters);
        if let Some(found) = ropes.filter_map(|rope| rope.rope_type.as_ref()).find(|kind| *kind != "default")
        {
            return refuse("rope scaling", found.clone(), "default");
        }
        if self.attention_bias || self.mlp_bias {
            return refuse("bias", "true".to_owned(), "false");
        }
        if let Some(found) = &self.quantization_config {
            let found = found.get("quant_method").and_then(Json::as_str).unwrap_or("unknown");
            return refuse("quantization", found.to_owned(), "none in safetensors; quantized gguf files");
        }
        Ok(())
    }

    fn into_config(self, generation: Ends) -> ModelConfig {
        let heads = self.num_attention_heads;
        let rope_theta = self.rope_theta.or(self.rope_parameters.and_then(|rope| rope.rope_theta));
        let mut eos_tokens = Vec::new();
        for token in [generation.eos_token_id, self.ends.eos_token_id].into_iter().flatten() {
            match token {
                OneOrMany::One(token) => eos_tokens.push(token),
                OneOrMany::Many(tokens) => eos_tokens.extend(tokens),
            }
        }
        ModelConfig {
            architecture: self.model_type.unwrap_or_default(),
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size.checked_div(heads).unwrap_or(0)),
            intermediate: self.intermediate_size,
            vocab: self.vocab_size,
            context_tokens: self.max_position_embeddings,
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rms_eps: self.rms_norm_eps,
            tied_embeddings: self.tie_word_embeddings,
            eos_tokens,
            bos_token: self.ends.bos_token_id.or(generation.bos_token_id),
        }
    }
}
