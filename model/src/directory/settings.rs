//! `config.json` and `generation_config.json`.

mod rope;

use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use crate::{
    config::{Activation, ModelConfig, wrong},
    error::FormatError,
    families::{Family, Outline, Windowed, WindowedLayers, Windows},
};

use rope::RopeSettings;

/// The fields of `config.json` that matter; code and everything else in it is ignored.
#[derive(Deserialize)]
struct Settings {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    /// Gemma's name for it, which comes before the other.
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    no_rope_layers: Option<Vec<u8>>,
    quantization_config: Option<Json>,
    #[serde(flatten)]
    window: WindowSettings,
    #[serde(flatten)]
    rope: RopeSettings,
    #[serde(flatten)]
    refused: Refused,
    #[serde(flatten)]
    ends: Ends,
}

#[derive(Deserialize)]
struct WindowSettings {
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
}

/// What nobody has asked for yet.
#[derive(Deserialize)]
struct Refused {
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    lm_head_bias: Option<bool>,
    use_bidirectional_attention: Option<bool>,
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
pub fn read(directory: &Path) -> Result<(&'static Family, ModelConfig), FormatError> {
    // The name comes first: other architectures lack fields that this one has.
    let json: Json = super::json(directory, "config.json")?;
    let family = Family::of_hugging_face(json.get("model_type").and_then(Json::as_str).unwrap_or("(none)"))?;
    let generation: Option<Ends> = super::optional_json(directory, "generation_config.json")?;
    let config = parse(family, json)?.into_outline(family, generation.unwrap_or_default())?.into_config()?;
    Ok((family, config))
}

fn parse(family: &Family, mut json: Json) -> Result<Settings, FormatError> {
    // Newer files have both spellings of this one, which would be one field twice.
    if let Some(fields) = json.as_object_mut().filter(|fields| fields.contains_key("sliding_window_pattern"))
    {
        fields.remove("_sliding_window_pattern");
    }
    let wrong = |source| FormatError::Json { file: "config.json".to_owned(), source };
    let settings = Settings::deserialize(json).map_err(wrong)?;
    settings.refuse_variants(family)?;
    Ok(settings)
}

// === impl Settings ===

impl Settings {
    /// What models of these families may ask for and this engine does not do.
    fn refuse_variants(&self, family: &Family) -> Result<(), FormatError> {
        let refuse =
            |what, found: String, supported| Err(FormatError::Unsupported { what, found, supported });
        let Refused { attention_bias, mlp_bias, lm_head_bias, use_bidirectional_attention } = self.refused;
        if [attention_bias, mlp_bias, lm_head_bias].contains(&Some(true)) {
            return refuse("bias", "true".to_owned(), "false");
        }
        if use_bidirectional_attention == Some(true) {
            return refuse("bidirectional attention", "true".to_owned(), "false");
        }
        if family.windowed == Windowed::None && self.window.use_sliding_window == Some(true) {
            return refuse("use_sliding_window", "true".to_owned(), "false in models of this family");
        }
        if let Some(found) = &self.quantization_config {
            let found = found.get("quant_method").and_then(Json::as_str).unwrap_or("unknown");
            return refuse("quantization", found.to_owned(), "none in safetensors; quantized gguf files");
        }
        Ok(())
    }

    fn into_outline(self, family: &'static Family, generation: Ends) -> Result<Outline, FormatError> {
        let mut eos_tokens = Vec::new();
        for token in [generation.eos_token_id, self.ends.eos_token_id].into_iter().flatten() {
            match token {
                OneOrMany::One(token) => eos_tokens.push(token),
                OneOrMany::Many(tokens) => eos_tokens.extend(tokens),
            }
        }
        let head_dim =
            self.head_dim.unwrap_or(self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0));
        let rope = self.rope.read(family, head_dim, self.max_position_embeddings)?;
        let activation = self.hidden_activation.or(self.hidden_act);
        Ok(Outline {
            family,
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            intermediate: self.intermediate_size,
            vocab: self.vocab_size,
            context_tokens: rope.context_tokens,
            rms_eps: self.rms_norm_eps,
            rope: rope.global,
            local_rope: rope.local,
            windows: self.window.read(family)?,
            sighted: self.no_rope_layers.map(|layers| layers.into_iter().map(|knows| knows != 0).collect()),
            score_scalar: self.query_pre_attn_scalar,
            attention_softcap: self.attn_logit_softcapping,
            logit_softcap: self.final_logit_softcapping,
            activation: activation.as_deref().map_or(Ok(family.activation), activation_of)?,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(family.tied),
            eos_tokens,
            bos_token: self.ends.bos_token_id.or(generation.bos_token_id),
        })
    }
}

fn activation_of(name: &str) -> Result<Activation, FormatError> {
    match name {
        "silu" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        found => Err(FormatError::Unsupported {
            what: "activation",
            found: found.to_owned(),
            supported: "silu and gelu_pytorch_tanh",
        }),
    }
}

// === impl WindowSettings ===

impl WindowSettings {
    fn read(self, family: &Family) -> Result<Windows, FormatError> {
        let late = family.windowed == Windowed::Late;
        let tokens = self.sliding_window.filter(|_| !late || self.use_sliding_window == Some(true));
        let mut windows = Windows::of(family, tokens, self.max_window_layers.unwrap_or(0));
        // As in Transformers, families that have a window in all layers or in none list nothing.
        if !matches!(family.windowed, Windowed::Late | Windowed::AllBut(_)) {
            return Ok(windows);
        }
        if let Some(interval) = self.sliding_window_pattern {
            windows.layers = WindowedLayers::AllBut(interval);
        }
        if let Some(types) = self.layer_types {
            let windowed = types.iter().map(|kind| match kind.as_str() {
                "sliding_attention" if tokens.is_none() => {
                    Err(wrong("sliding_window", &"null", "a number, because layers have a window"))
                }
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                found => Err(FormatError::Unsupported {
                    what: "attention",
                    found: found.to_owned(),
                    supported: "full_attention and sliding_attention",
                }),
            });
            windows.layers = WindowedLayers::Listed(windowed.collect::<Result<_, _>>()?);
        }
        Ok(windows)
    }
}

#[cfg(test)]
mod tests;
