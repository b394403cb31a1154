//! What the engine must know of a model.

use serde::Serialize;

use crate::error::FormatError;

/// Shape and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Family of the model: `model_type` of its `config.json`.
    pub architecture: String,
    /// Number of transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Rows of the embedding; every token id is below it.
    pub vocab: usize,
    /// The longest sequence the model was made for.
    pub context_tokens: usize,
    /// What differs between layers, first to last: one entry for each of `layers`.
    pub attention: Vec<LayerAttention>,
    /// The rotary embeddings that layers refer to by index.
    pub rotaries: Vec<Rotary>,
    /// Factor of scores before the softmax; usually `1 / sqrt(head_dim)`.
    pub attention_scale: f32,
    /// Scores become `cap * tanh(score / cap)` before masking.
    pub attention_softcap: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Norm of queries and keys before they are turned.
    pub qk_norm: QkNorm,
    /// Where the norms of a layer stand.
    pub norms: Norms,
    /// Nonlinearity of the gate.
    pub activation: Activation,
    /// Factor of embeddings where they enter the first layer.
    pub embedding_scale: f32,
    /// Added to the mean square in RMS norm.
    pub rms_eps: f32,
    /// Whether the output projection is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
    /// Token that begins a text, if the model has one.
    pub bos_token: Option<u32>,
}

/// Attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerAttention {
    /// A token sees itself and the `window - 1` tokens before it; everything before it if none.
    pub window: Option<usize>,
    /// Index of its rotary embedding in [`ModelConfig::rotaries`]; positions are not encoded if none.
    pub rotary: Option<usize>,
}

/// A rotary embedding: element `i` of a head turns with element `i + frequencies.len()`
/// by `position * frequencies[i]`; elements from `2 * frequencies.len()` on stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rotary {
    /// Radians for each position; at most `head_dim / 2` of them.
    pub frequencies: Vec<f32>,
    /// Factor of cosines and sines (YaRN, LongRoPE); usually 1.
    pub magnitude: f32,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself; weights are as long as a head.
    Head,
    /// All heads of a token together; weights are as long as all of them.
    Row,
}

/// Where the norms of a layer stand. Names are those of Hugging Face.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Norms {
    /// `input_layernorm` before attention, `post_attention_layernorm` before the MLP.
    Before,
    /// `post_attention_layernorm` and `post_feedforward_layernorm`, on what is added to the residual.
    After,
    /// Both: `input_layernorm` and `pre_feedforward_layernorm` before,
    /// `post_attention_layernorm` and `post_feedforward_layernorm` after.
    Around,
}

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

// === impl Rotary ===

impl Rotary {
    /// The plain one: `frequencies[i] = theta ^ (-2 i / dims)`. `dims` is even.
    #[must_use]
    pub fn plain(dims: usize, theta: f32) -> Self {
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f32 / dims as f32);
        Self { frequencies: (0..dims / 2).map(frequency).collect(), magnitude: 1.0 }
    }
}

// === impl ModelConfig ===

impl ModelConfig {
    /// Bounds are far beyond any model; they keep products of two fields far from overflow.
    pub(crate) fn check_sizes(&self) -> Result<(), FormatError> {
        let sizes = [
            ("layers", self.layers, 1 << 10),
            ("hidden size", self.hidden, 1 << 20),
            ("heads", self.heads, 1 << 12),
            ("kv heads", self.kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 12),
            ("intermediate size", self.intermediate, 1 << 22),
            ("vocabulary size", self.vocab, 1 << 22),
            ("context length", self.context_tokens, 1 << 30),
        ];
        for (what, found, limit) in sizes {
            if found == 0 {
                return Err(wrong(what, &found, "more than 0"));
            }
            if found > limit {
                return Err(FormatError::Limit { what, found: found as u64, limit: limit as u64 });
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(wrong("kv heads", &self.kv_heads, "a divisor of the number of heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(wrong("head size", &self.head_dim, "even"));
        }
        Ok(())
    }

    /// That the numbers make sense together.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        self.check_sizes()?;
        let numbers = self.rotaries.iter().flat_map(|rotary| {
            let frequencies = rotary.frequencies.iter().map(|frequency| ("rope frequency", *frequency));
            frequencies.chain([("rope magnitude", rotary.magnitude)])
        });
        let caps = [("attention soft cap", self.attention_softcap), ("logit soft cap", self.logit_softcap)];
        let numbers = numbers
            .chain(caps.into_iter().filter_map(|(what, cap)| Some((what, cap?))))
            .chain([("attention scale", self.attention_scale), ("rms norm epsilon", self.rms_eps)]);
        for (what, found) in numbers {
            if !(found.is_finite() && found > 0.0) {
                return Err(wrong(what, &found, "a positive number"));
            }
        }
        if self.attention.iter().any(|layer| layer.window == Some(0)) {
            return Err(wrong("sliding window", &0, "more than 0"));
        }
        let tokens = self.eos_tokens.iter().chain(&self.bos_token);
        match tokens.copied().find(|token| *token as usize >= self.vocab) {
            Some(token) => Err(wrong("eos or bos token", &token, "a token of the vocabulary")),
            None => Ok(()),
        }
    }
}

/// A value that cannot be.
pub(crate) fn wrong(key: &str, found: &dyn ToString, expected: &'static str) -> FormatError {
    FormatError::Value { key: key.to_owned(), found: found.to_string(), expected }
}
