//! A model's weights, packed for the kernels.

use std::sync::Arc;

use baton_kernels::cpu::{AttentionShape, PackedMatrix, RmsNorm, ShapeError};
use baton_model::{Model, ModelConfig, ModelError, Norms, QkNorm, Weights};
use baton_protocol::KvShape;
use rayon::prelude::*;

use super::{
    Precision,
    loading::{Loading, Packer, Use},
};
use crate::backend::BackendError;

/// Weights of a model, packed once and shared by all backends of a process.
pub struct CpuModel {
    config: ModelConfig,
    precision: Precision,
    /// `[vocab][hidden]`; the output projection too, when that is tied.
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<Layer>,
    /// Before the output projection.
    pub(super) norms: BlockNorms,
    output: Option<PackedMatrix>,
}

/// One transformer layer.
pub(super) struct Layer {
    pub attention_norms: BlockNorms,
    /// Queries, then keys, then values.
    pub qkv: PackedMatrix,
    /// Of queries, keys and values.
    pub qkv_bias: Option<Vec<f32>>,
    /// Of queries and of keys; as long as a head or as all of them.
    pub qk_norms: Option<[RmsNorm; 2]>,
    pub attention_output: PackedMatrix,
    pub mlp_norms: BlockNorms,
    pub gate_up: PackedMatrix,
    pub down: PackedMatrix,
}

/// Norms of what a block reads from the residual stream and of what it adds to it.
pub(super) struct BlockNorms {
    pub before: Option<RmsNorm>,
    pub after: Option<RmsNorm>,
}

/// Why weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum WeightsError {
    #[error("{tensor} is {rows} x {cols}, not {expected_rows} x {expected_cols}")]
    Shape { tensor: String, rows: usize, cols: usize, expected_rows: usize, expected_cols: usize },
    #[error("{tensor} has {len} elements, not {expected}")]
    Length { tensor: String, len: usize, expected: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Pack(#[from] ShapeError),
}

/// Reads tensors and checks their shapes.
struct Reader<'a> {
    config: &'a ModelConfig,
    packer: Packer<'a>,
}

// === impl CpuModel ===

impl CpuModel {
    /// Reads and packs all weights of `model`, on all threads of the current rayon pool.
    ///
    /// # Errors
    /// [`BackendError::Device`] when a tensor is missing or of another shape
    /// than the model's configuration says.
    pub fn load<'a>(model: &'a Model, how: impl Into<Loading<'a>>) -> Result<Arc<Self>, BackendError> {
        Self::pack(&model.config, &model.weights, how)
            .map(Arc::new)
            .map_err(|error| BackendError::Device(format!("cannot use the model's weights: {error}")))
    }

    pub(super) fn pack<'a>(
        config: &ModelConfig,
        weights: &'a Weights,
        how: impl Into<Loading<'a>>,
    ) -> Result<Self, WeightsError> {
        let how = how.into();
        let read = Reader { config, packer: Packer::new(weights, how) };
        let tokens = |name| read.packer.stacked(Use::Tokens, &[(name, config.vocab)], config.hidden);
        Ok(Self {
            embedding: tokens("model.embed_tokens.weight")?,
            layers: (0..config.layers)
                .into_par_iter()
                .map(|layer| read.layer(layer))
                .collect::<Result<_, _>>()?,
            norms: BlockNorms { before: Some(read.norm("model.norm.weight", config.hidden)?), after: None },
            output: if config.tied_embeddings { None } else { Some(tokens("lm_head.weight")?) },
            config: config.clone(),
            precision: how.precision,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How it computes.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        [&self.embedding].into_iter().chain(&self.output).chain(layers).map(PackedMatrix::bytes).sum()
    }

    /// Shape of the cached rows, in pages of `page_tokens`.
    pub fn kv_shape(&self, page_tokens: u32) -> KvShape {
        // Sizes of a checked configuration are far below 2^32.
        KvShape {
            layers: self.config.layers as u32,
            kv_heads: self.config.kv_heads as u32,
            head_dim: self.config.head_dim as u32,
            dtype: self.precision.kv_dtype(),
            page_tokens,
        }
    }

    /// The output projection.
    pub(super) fn output(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn attention_shape(&self, page_tokens: usize, layer: usize) -> AttentionShape {
        let ModelConfig { heads, kv_heads, head_dim, attention_scale, attention_softcap, .. } = self.config;
        AttentionShape {
            heads,
            kv_heads,
            head_dim,
            page_tokens,
            window: self.config.attention[layer].window,
            scale: attention_scale,
            soft_cap: attention_softcap,
        }
    }
}

// === impl Layer ===

impl Layer {
    fn matrices(&self) -> [&PackedMatrix; 4] {
        [&self.qkv, &self.attention_output, &self.gate_up, &self.down]
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn layer(&self, layer: usize) -> Result<Layer, WeightsError> {
        let ModelConfig { hidden, heads, kv_heads, head_dim, intermediate, .. } = *self.config;
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let [q, k, v] = ["q", "k", "v"].map(|part| name(&format!("self_attn.{part}_proj")));
        let [gate, up] = ["gate", "up"].map(|part| name(&format!("mlp.{part}_proj")));
        let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
        let qkv = [(&*q, q_rows), (&*k, kv_rows), (&*v, kv_rows)];
        let single = |part, rows, cols| self.packer.stacked(Use::Layer, &[(&*name(part), rows)], cols);
        let [attention_norms, mlp_norms] = self.block_norms(layer)?;
        Ok(Layer {
            attention_norms,
            qkv: self.packer.stacked(Use::Layer, &qkv, hidden)?,
            attention_output: single("self_attn.o_proj", hidden, q_rows)?,
            qkv_bias: self.qkv_bias(layer)?,
            qk_norms: self.qk_norms(layer)?,
            mlp_norms,
            gate_up: self.packer.gated([&gate, &up], intermediate, hidden)?,
            down: single("mlp.down_proj", hidden, intermediate)?,
        })
    }

    /// Of attention and of the MLP.
    fn block_norms(&self, layer: usize) -> Result<[BlockNorms; 2], WeightsError> {
        let norm = |part: &str| -> Result<_, WeightsError> {
            self.norm(&format!("model.layers.{layer}.{part}_layernorm.weight"), self.config.hidden).map(Some)
        };
        Ok(match self.config.norms {
            Norms::Before => [
                BlockNorms { before: norm("input")?, after: None },
                BlockNorms { before: norm("post_attention")?, after: None },
            ],
            Norms::After => [
                BlockNorms { before: None, after: norm("post_attention")? },
                BlockNorms { before: None, after: norm("post_feedforward")? },
            ],
            Norms::Around => [
                BlockNorms { before: norm("input")?, after: norm("post_attention")? },
                BlockNorms { before: norm("pre_feedforward")?, after: norm("post_feedforward")? },
            ],
        })
    }

    fn qkv_bias(&self, layer: usize) -> Result<Option<Vec<f32>>, WeightsError> {
        let ModelConfig { heads, kv_heads, head_dim, qkv_bias, .. } = *self.config;
        if !qkv_bias {
            return Ok(None);
        }
        let mut all = Vec::new();
        for (part, heads) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
            all.extend(self.packer.vector(&name, heads * head_dim)?);
        }
        Ok(Some(all))
    }

    fn qk_norms(&self, layer: usize) -> Result<Option<[RmsNorm; 2]>, WeightsError> {
        let ModelConfig { heads, kv_heads, head_dim, .. } = *self.config;
        let [q, k] = match self.config.qk_norm {
            QkNorm::None => return Ok(None),
            QkNorm::Head => [head_dim; 2],
            QkNorm::Row => [heads * head_dim, kv_heads * head_dim],
        };
        let norm = |part, len| self.norm(&format!("model.layers.{layer}.self_attn.{part}_norm.weight"), len);
        Ok(Some([norm("q", q)?, norm("k", k)?]))
    }

    fn norm(&self, name: &str, len: usize) -> Result<RmsNorm, WeightsError> {
        Ok(RmsNorm { weight: self.packer.vector(name, len)?, eps: self.config.rms_eps })
    }
}
