//! What the engine must know of a model.

use serde::Serialize;

use crate::error::FormatError;

/// Shape and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Family of the model; only `llama` for now.
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
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Added to the mean square in RMS norm.
    pub rms_eps: f32,
    /// Whether the output projection is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
    /// Token that begins a text, if the model has one.
    pub bos_token: Option<u32>,
}

// === impl ModelConfig ===

impl ModelConfig {
    /// Bounds are far beyond any model; they keep products of two fields far from overflow.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
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
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(wrong("rope theta", &self.rope_theta, "a positive number"));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return Err(wrong("rms norm epsilon", &self.rms_eps, "a positive number"));
        }
        let tokens = self.eos_tokens.iter().chain(&self.bos_token);
        match tokens.copied().find(|token| *token as usize >= self.vocab) {
            Some(token) => Err(wrong("eos or bos token", &token, "a token of the vocabulary")),
            None => Ok(()),
        }
    }
}

fn wrong(key: &str, found: &dyn ToString, expected: &'static str) -> FormatError {
    FormatError::Value { key: key.to_owned(), found: found.to_string(), expected }
}
