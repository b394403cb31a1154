//! A model's weights, packed for the kernels.

use std::sync::Arc;

use baton_kernels::cpu::{AttentionShape, PackedMatrix, RmsNorm, ShapeError};
use baton_model::{Matrix, Model, ModelConfig, ModelError, Weights};
use baton_protocol::KvShape;

use super::Precision;
use crate::backend::BackendError;

/// Weights of a model, packed once and shared by all backends of a process.
pub struct CpuModel {
    config: ModelConfig,
    precision: Precision,
    /// `[vocab][hidden]`; the output projection too, when that is tied.
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    output: Option<PackedMatrix>,
}

/// One transformer layer.
pub(super) struct Layer {
    pub attention_norm: RmsNorm,
    /// Queries, then keys, then values.
    pub qkv: PackedMatrix,
    pub attention_output: PackedMatrix,
    pub mlp_norm: RmsNorm,
    pub gate_up: PackedMatrix,
    pub down: PackedMatrix,
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
    weights: &'a Weights,
    config: &'a ModelConfig,
}

// === impl CpuModel ===

impl CpuModel {
    /// Reads and packs all weights of `model`.
    ///
    /// # Errors
    /// [`BackendError::Device`] when a tensor is missing or of another shape
    /// than the model's configuration says.
    pub fn load(model: &Model, precision: Precision) -> Result<Arc<Self>, BackendError> {
        Self::pack(&model.config, &model.weights, precision)
            .map(Arc::new)
            .map_err(|error| BackendError::Device(format!("cannot use the model's weights: {error}")))
    }

    pub(super) fn pack(
        config: &ModelConfig,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self, WeightsError> {
        let read = Reader { weights, config };
        let (vocab, hidden) = (config.vocab, config.hidden);
        let embedding = read.matrix("model.embed_tokens.weight", vocab, hidden)?;
        let output = match config.tied_embeddings {
            true => None,
            false => Some(packed(&read.matrix("lm_head.weight", vocab, hidden)?)?),
        };
        Ok(Self {
            embedding: packed(&embedding)?,
            layers: (0..config.layers).map(|layer| read.layer(layer)).collect::<Result<_, _>>()?,
            norm: read.norm("model.norm.weight")?,
            output,
            config: config.clone(),
            precision,
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

    pub(super) fn attention_shape(&self, page_tokens: usize) -> AttentionShape {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        AttentionShape { heads, kv_heads, head_dim, page_tokens }
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
        let matrix = |part, rows, cols| self.matrix(&name(part), rows, cols);
        let [q, k, v] = [
            matrix("self_attn.q_proj", heads * head_dim, hidden)?,
            matrix("self_attn.k_proj", kv_heads * head_dim, hidden)?,
            matrix("self_attn.v_proj", kv_heads * head_dim, hidden)?,
        ];
        let gate = matrix("mlp.gate_proj", intermediate, hidden)?;
        let up = matrix("mlp.up_proj", intermediate, hidden)?;
        Ok(Layer {
            attention_norm: self.norm(&name("input_layernorm"))?,
            qkv: PackedMatrix::pack(&[&q.values, &k.values, &v.values], hidden)?,
            attention_output: packed(&matrix("self_attn.o_proj", hidden, heads * head_dim)?)?,
            mlp_norm: self.norm(&name("post_attention_layernorm"))?,
            gate_up: PackedMatrix::pack_gated(&gate.values, &up.values, hidden)?,
            down: packed(&matrix("mlp.down_proj", hidden, intermediate)?)?,
        })
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, WeightsError> {
        let matrix = self.weights.matrix(name)?;
        if (matrix.rows, matrix.cols, matrix.values.len()) != (rows, cols, rows * cols) {
            return Err(WeightsError::Shape {
                tensor: name.to_owned(),
                rows: matrix.rows,
                cols: matrix.cols,
                expected_rows: rows,
                expected_cols: cols,
            });
        }
        Ok(matrix)
    }

    fn norm(&self, name: &str) -> Result<RmsNorm, WeightsError> {
        let weight = self.weights.vector(name)?;
        let expected = self.config.hidden;
        if weight.len() != expected {
            return Err(WeightsError::Length { tensor: name.to_owned(), len: weight.len(), expected });
        }
        Ok(RmsNorm { weight, eps: self.config.rms_eps })
    }
}

fn packed(matrix: &Matrix) -> Result<PackedMatrix, ShapeError> {
    PackedMatrix::pack(&[&matrix.values], matrix.cols)
}
