//! The configuration that the metadata describes.

use super::{
    header::TensorInfo,
    metadata::{Metadata, Pattern},
};
use crate::{
    config::{ModelConfig, wrong},
    error::FormatError,
    families::{Family, GGUF_OUTPUT, Outline, Rope, Scaling, Windowed, WindowedLayers, Windows},
};

/// Factors of frequencies that a file holds as tensors.
#[derive(Default)]
pub struct RopeFactors {
    /// Llama 3's.
    pub always: Option<Vec<f32>>,
    /// LongRoPE's.
    pub short: Option<Vec<f32>>,
    pub long: Option<Vec<f32>>,
}

/// Metadata of one architecture: its keys begin with its name.
struct Keys<'a> {
    metadata: &'a Metadata,
    family: &'static Family,
}

/// Reads the configuration.
pub fn read(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    factors: RopeFactors,
) -> Result<(&'static Family, ModelConfig), FormatError> {
    let family = Family::of_gguf(metadata.text("general.architecture")?)?;
    let keys = Keys { metadata, family };
    keys.refuse_variants()?;
    let config = keys.outline(tensors, factors)?.into_config()?;
    keys.expect("attention.value_length", config.head_dim)?;
    if family.interleaved_gguf {
        keys.expect("rope.dimension_count", config.head_dim)?;
    }
    Ok((family, config))
}

// === impl Keys ===

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.gguf.unwrap_or_default())
    }

    fn size(&self, name: &str) -> Result<usize, FormatError> {
        self.metadata.size(&self.key(name))
    }

    fn optional_size(&self, name: &str) -> Result<Option<usize>, FormatError> {
        self.metadata.optional_size(&self.key(name))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, FormatError> {
        self.metadata.optional_float(&self.key(name))
    }

    fn expect(&self, name: &str, head_dim: usize) -> Result<(), FormatError> {
        self.metadata.expect_size(&self.key(name), head_dim, "the size of a head")
    }

    /// What files of these families may ask for and this engine does not do.
    fn refuse_variants(&self) -> Result<(), FormatError> {
        const EXPERTS: &str = "0, because mixtures of experts are not supported";
        self.metadata.expect_size(&self.key("expert_count"), 0, EXPERTS)?;
        if matches!(self.family.windowed, Windowed::None | Windowed::Late) {
            const WINDOW: &str = "0, because models of this family have no windows in gguf files";
            self.metadata.expect_size(&self.key("attention.sliding_window"), 0, WINDOW)?;
        }
        if self.metadata.optional_bool(&self.key("attention.causal"))? == Some(false) {
            return Err(wrong(&self.key("attention.causal"), &"false", "true"));
        }
        Ok(())
    }

    fn outline(&self, tensors: &[TensorInfo], factors: RopeFactors) -> Result<Outline, FormatError> {
        let metadata = self.metadata;
        let (heads, hidden) = (self.size("attention.head_count")?, self.size("embedding_length")?);
        let layers = self.size("block_count")?;
        let head_dim = match self.optional_size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let vocab = metadata.texts("tokenizer.ggml.tokens")?.len();
        metadata.expect_size(&self.key("vocab_size"), vocab, "the number of tokens")?;
        let context_tokens = self.size("context_length")?;
        let rope = self.rope(context_tokens, factors)?;
        Ok(Outline {
            family: self.family,
            layers,
            hidden,
            heads,
            kv_heads: self.optional_size("attention.head_count_kv")?,
            head_dim: Some(head_dim),
            intermediate: self.size("feed_forward_length")?,
            vocab,
            context_tokens,
            rms_eps: metadata.float(&self.key("attention.layer_norm_rms_epsilon"))?,
            local_rope: self.local_rope()?,
            rope,
            windows: self.windows()?,
            sighted: None,
            score_scalar: self.score_scalar(layers, hidden, heads),
            attention_softcap: self.softcap("attn_logit_softcapping")?,
            logit_softcap: self.softcap("final_logit_softcapping")?,
            activation: self.family.activation,
            tied_embeddings: !tensors.iter().any(|tensor| tensor.name == GGUF_OUTPUT),
            eos_tokens: metadata.token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            bos_token: metadata.token("tokenizer.ggml.bos_token_id")?,
        })
    }

    /// Files of older converters write 0 for none.
    fn softcap(&self, name: &str) -> Result<Option<f32>, FormatError> {
        Ok(self.float(name)?.filter(|cap| *cap != 0.0))
    }

    /// The largest Gemmas divide scores by the root of what a head would be if heads shared the
    /// hidden size. Their files do not say so, and are known by their depth, as in llama.cpp.
    fn score_scalar(&self, layers: usize, hidden: usize, heads: usize) -> Option<f32> {
        let shares = matches!((self.family.gguf, layers), (Some("gemma2"), 46) | (Some("gemma3"), 62));
        shares.then(|| hidden.checked_div(heads).unwrap_or(0) as f32)
    }

    fn windows(&self) -> Result<Windows, FormatError> {
        let mut tokens = self.optional_size("attention.sliding_window")?;
        if self.family.gguf == Some("gemma2") {
            // The first files of this family do not say what all its models have.
            tokens = tokens.or(Some(4096));
        }
        let mut windows = Windows::of(self.family, tokens.filter(|tokens| *tokens > 0), 0);
        if let Windowed::AllBut(_) = self.family.windowed {
            windows.layers =
                match self.metadata.optional_pattern(&self.key("attention.sliding_window_pattern"))? {
                    Some(Pattern::Interval(interval)) => WindowedLayers::AllBut(interval),
                    Some(Pattern::Listed(list)) => WindowedLayers::Listed(list),
                    None => windows.layers,
                };
        }
        Ok(windows)
    }

    fn local_rope(&self) -> Result<Option<Rope>, FormatError> {
        let Some(theta) = self.family.local_theta else { return Ok(None) };
        let theta = self.float("rope.freq_base_swa")?.unwrap_or(theta);
        Ok(Some(Rope { theta, dims: None, scaling: Scaling::None }))
    }

    fn rope(&self, context: usize, factors: RopeFactors) -> Result<Rope, FormatError> {
        let dims = self.optional_size("rope.dimension_count")?;
        let theta = self.float("rope.freq_base")?.unwrap_or(self.family.theta);
        let scaling = self.scaling(context as f32, factors)?;
        Ok(Rope { theta, dims, scaling })
    }

    fn scaling(&self, context: f32, factors: RopeFactors) -> Result<Scaling, FormatError> {
        let original = self.optional_size("rope.scaling.original_context_length")?;
        let original = original.map_or(context, |tokens| tokens as f32);
        let factor = self.float("rope.scaling.factor")?.or(self.float("rope.scale_linear")?);
        let factor = factor.filter(|factor| *factor != 0.0);
        let kind = self.metadata.optional_text(&self.key("rope.scaling.type"))?;
        if let Some(factors) = factors.always {
            return match kind {
                None | Some("none") => Ok(Scaling::Each { factors, magnitude: 1.0 }),
                Some(_) => Err(wrong("rope.scaling.type", &"there", "absent beside rope_freqs.weight")),
            };
        }
        let needed = || factor.ok_or_else(|| FormatError::Missing { key: self.key("rope.scaling.factor") });
        match kind {
            _ if factors.long.is_some() || factors.short.is_some() => self.long(context, original, factors),
            Some("none") => Ok(Scaling::None),
            None => Ok(factor.map_or(Scaling::None, |factor| Scaling::Linear { factor })),
            Some("linear") => Ok(Scaling::Linear { factor: needed()? }),
            Some("yarn") => self.yarn(needed()?, original),
            Some(found) => Err(FormatError::Unsupported {
                what: "rope scaling",
                found: found.to_owned(),
                supported: "none, linear, yarn, and longrope with its factors",
            }),
        }
    }

    fn yarn(&self, factor: f32, original: f32) -> Result<Scaling, FormatError> {
        let magnitude =
            self.float("rope.scaling.yarn_attn_factor")?.or(self.float("rope.scaling.attn_factor")?);
        Ok(Scaling::Yarn {
            factor,
            original,
            fast: self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            slow: self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            truncates: true,
            magnitude: magnitude.unwrap_or_else(|| Scaling::yarn_magnitude(factor)),
        })
    }

    /// Which factors hold follows from the model's context, once and for all: cached keys were
    /// turned by them.
    fn long(&self, context: f32, original: f32, factors: RopeFactors) -> Result<Scaling, FormatError> {
        let (name, factors) = match context > original {
            true => ("rope_factors_long.weight", factors.long),
            false => ("rope_factors_short.weight", factors.short),
        };
        let factors = factors.ok_or_else(|| FormatError::MissingTensor { tensor: name.to_owned() })?;
        let magnitude = self.float("rope.scaling.attn_factor")?;
        let magnitude = magnitude.unwrap_or_else(|| Scaling::long_magnitude(context, original));
        Ok(Scaling::Each { factors, magnitude })
    }
}

#[cfg(test)]
mod tests;
