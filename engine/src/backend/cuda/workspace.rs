//! Memory between the kernels of a step, made once.

use std::path::PathBuf;

use baton_kernels::cuda::{Gpu, GpuError, Half, cudarc::driver::CudaSlice, rope::KvForm};
use baton_model::ModelConfig;

use super::{
    histories::Histories,
    pass::{MAX_BAND_ROWS, pool},
    step::Form,
    unpacked::Unpacked,
};

/// The largest step that a backend computes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaLimits {
    /// New tokens of a step.
    pub rows: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Longest sequence in tokens.
    pub context_tokens: usize,
    /// What cached keys and values are held as.
    pub kv: KvForm,
    /// Folder in which found algorithms are kept.
    pub cache: Option<PathBuf>,
    /// Whether the bits of a row may depend on nothing but its own sequence: not on the
    /// batch, nor on how a prompt is cut. Slower; on Hopper alone.
    pub deterministic: bool,
}

/// Intermediate results of a step; `R` rows and `W` wanted rows at most.
pub(super) struct Workspace {
    /// What the step computes, see [`Form`].
    pub words: CudaSlice<i32>,
    /// Residual stream: `[R][hidden]`.
    pub x: CudaSlice<Half>,
    /// Input of the next product: `[R][hidden]`.
    pub normed: CudaSlice<Half>,
    /// `[R][q heads, k heads, v heads][head_dim]`
    pub qkv: CudaSlice<Half>,
    /// Output of attention: `[R][head][head_dim]`.
    pub attended: CudaSlice<Half>,
    /// Gates, then what they gate, of a band of rows: `[MAX_BAND_ROWS][2][intermediate]`.
    pub gate_up: CudaSlice<Half>,
    /// `[MAX_BAND_ROWS][intermediate]`
    pub gated: CudaSlice<Half>,
    /// A layer of the chunks' cached rows, where those are in fp8.
    pub unpacked: Option<Unpacked>,
    /// Residual stream of the wanted rows: `[W][hidden]`.
    pub last: CudaSlice<Half>,
    /// `[W][vocab]`
    pub logits: CudaSlice<f32>,
    /// What sequences have said, and masks of the wanted rows.
    pub histories: Histories,
    /// The drawn tokens: `[W]`.
    pub drawn: CudaSlice<i32>,
}

// === impl CudaLimits ===

impl CudaLimits {
    /// Of an engine whose scheduler makes steps of `max_batch_tokens` for `max_sequences`,
    /// but always lets a prompt have a page.
    pub fn new(max_batch_tokens: usize, max_sequences: usize, context_tokens: usize) -> Self {
        // Steps of single tokens are padded.
        let sequences = Form::padded_singles(max_sequences);
        let rows = max_batch_tokens.max(sequences + super::PAGE_TOKENS as usize);
        let kv = KvForm::Plain;
        Self { rows, sequences, context_tokens, kv, cache: None, deterministic: false }
    }
}

// === impl Workspace ===

impl Workspace {
    pub fn new(gpu: &Gpu, config: &ModelConfig, limits: &CudaLimits) -> Result<Self, GpuError> {
        let ModelConfig { hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = *config;
        let CudaLimits { rows, sequences, context_tokens, .. } = *limits;
        let band = rows.min(MAX_BAND_ROWS);
        let words = Form::most_words(rows, sequences, context_tokens.div_ceil(super::PAGE_TOKENS as usize));
        let unpacked = || Unpacked::new(gpu, pool(config, limits.kv), context_tokens);
        Ok(Self {
            words: gpu.zeros(words)?,
            x: gpu.zeros(rows * hidden)?,
            normed: gpu.zeros(rows * hidden)?,
            qkv: gpu.zeros(rows * (heads + 2 * kv_heads) * head_dim)?,
            attended: gpu.zeros(rows * heads * head_dim)?,
            gate_up: gpu.zeros(band * 2 * intermediate)?,
            gated: gpu.zeros(band * intermediate)?,
            unpacked: (limits.kv == KvForm::Fp8).then(unpacked).transpose()?,
            last: gpu.zeros(sequences * hidden)?,
            logits: gpu.zeros(sequences * vocab)?,
            histories: Histories::new(gpu, vocab, sequences, context_tokens)?,
            drawn: gpu.zeros(sequences)?,
        })
    }
}
