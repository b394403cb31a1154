//! Rotary embeddings in `config.json`, in the words of old and new versions of Transformers.

use serde::Deserialize;

use crate::{
    error::FormatError,
    families::{Family, Rope, Scaling},
};

/// The fields that matter.
#[derive(Deserialize)]
pub struct RopeSettings {
    rope_theta: Option<f32>,
    rope_local_base_freq: Option<f32>,
    partial_rotary_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    /// The old name.
    rope_scaling: Option<Parameters>,
    /// The new name.
    rope_parameters: Option<Parameters>,
}

/// One embedding, or one for each kind of attention.
#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(flatten)]
    all: Parameter,
    full_attention: Option<Parameter>,
    sliding_attention: Option<Parameter>,
}

#[derive(Deserialize, Default)]
struct Parameter {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    truncate: Option<bool>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
}

/// What the fields mean.
pub struct Ropes {
    pub global: Rope,
    pub local: Option<Rope>,
    /// YaRN's context is longer than the one that the model was first made for.
    pub context_tokens: usize,
}

// === impl RopeSettings ===

impl RopeSettings {
    /// Reads the embeddings of a model for `context_tokens`.
    pub fn read(self, family: &Family, head_dim: usize, context_tokens: usize) -> Result<Ropes, FormatError> {
        let Parameters { all, full_attention, sliding_attention } =
            self.rope_scaling.or(self.rope_parameters).unwrap_or_default();
        let mut parameter = full_attention.unwrap_or(all);
        parameter.rope_theta = parameter.rope_theta.or(self.rope_theta);
        parameter.partial_rotary_factor = parameter.partial_rotary_factor.or(self.partial_rotary_factor);
        parameter.original_max_position_embeddings =
            self.original_max_position_embeddings.or(parameter.original_max_position_embeddings);
        let global = parameter.rope(family.theta, head_dim, context_tokens as f32)?;
        let local = family.local_theta.map(|theta| {
            let mut parameter = sliding_attention.unwrap_or_default();
            parameter.rope_theta = parameter.rope_theta.or(self.rope_local_base_freq);
            parameter.rope(theta, head_dim, context_tokens as f32)
        });
        let context_tokens = match global.scaling {
            Scaling::Yarn { factor, original, .. } => context_tokens.max((factor * original) as usize),
            _ => context_tokens,
        };
        Ok(Ropes { global, local: local.transpose()?, context_tokens })
    }
}

// === impl Parameter ===

impl Parameter {
    fn rope(self, theta: f32, head_dim: usize, context: f32) -> Result<Rope, FormatError> {
        let dims = self.partial_rotary_factor.map(|part| (head_dim as f32 * part) as usize);
        let theta = self.rope_theta.unwrap_or(theta);
        Ok(Rope { theta, dims, scaling: self.scaling(context)? })
    }

    fn scaling(self, context: f32) -> Result<Scaling, FormatError> {
        let needed = |name: &str, field: Option<f32>| {
            field.ok_or_else(|| FormatError::Missing { key: format!("{name} of the rope scaling") })
        };
        let factor = || needed("factor", self.factor);
        let original = self.original_max_position_embeddings.unwrap_or(context);
        Ok(match self.rope_type.as_deref().unwrap_or("default") {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: factor()? },
            "llama3" => Scaling::Llama3 {
                factor: factor()?,
                low: needed("low_freq_factor", self.low_freq_factor)?,
                high: needed("high_freq_factor", self.high_freq_factor)?,
                original,
            },
            "yarn" => Scaling::Yarn {
                factor: factor()?,
                original,
                fast: self.beta_fast.unwrap_or(32.0),
                slow: self.beta_slow.unwrap_or(1.0),
                truncates: self.truncate.unwrap_or(true),
                magnitude: self.yarn_magnitude(factor()?),
            },
            // `su` is what LongRoPE was called first.
            "longrope" | "su" => self.long(context, original)?,
            found => {
                return Err(FormatError::Unsupported {
                    what: "rope scaling",
                    found: found.to_owned(),
                    supported: "default, linear, llama3, yarn and longrope",
                });
            }
        })
    }

    fn yarn_magnitude(&self, factor: f32) -> f32 {
        let of = |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), ..) => factor,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => of(one) / of(all),
            _ => Scaling::yarn_magnitude(factor),
        }
    }

    /// Which factors hold follows from the model's context, once and for all: cached keys were
    /// turned by them.
    fn long(self, context: f32, original: f32) -> Result<Scaling, FormatError> {
        let (name, factors) = match context > original {
            true => ("long_factor", self.long_factor),
            false => ("short_factor", self.short_factor),
        };
        let missing = || FormatError::Missing { key: format!("{name} of the rope scaling") };
        let context = self.factor.map_or(context, |factor| factor * original);
        let magnitude = self.attention_factor.unwrap_or_else(|| Scaling::long_magnitude(context, original));
        Ok(Scaling::Each { factors: factors.ok_or_else(missing)?, magnitude })
    }
}
