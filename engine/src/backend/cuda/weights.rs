//! A model's weights in a card's memory.

use std::sync::Arc;

use baton_kernels::cuda::{
    Dtype, Gpu, GpuError, Half, Pinned, Read, Weights as View, cudarc::driver::CudaSlice, norm::Norm,
    rope::KvForm,
};
use baton_model::{Model, ModelConfig, ModelError, Norms, QkNorm, Weights};
use baton_protocol::{KvDtype, KvShape};
use parking_lot::Mutex;

use super::matrix::{Matrix, Place, WeightForm};
use crate::backend::BackendError;

/// Weights of a model on one card, shared by all backends of a process.
pub struct CudaModel {
    pub(super) gpu: Gpu,
    config: ModelConfig,
    /// `[vocab][hidden]`; the output projection too, when that is tied.
    pub(super) embedding: Dense,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vector,
    output: Option<Dense>,
    /// Frequencies of each rotary embedding.
    pub(super) rotaries: Vec<CudaSlice<f32>>,
    /// Those of layers that do not know positions.
    pub(super) no_frequencies: CudaSlice<f32>,
}

/// One transformer layer.
pub(super) struct Layer {
    pub attention_norms: BlockNorms,
    /// Queries, then keys, then values.
    pub qkv: Matrix,
    /// Of queries, keys and values.
    pub qkv_bias: Option<CudaSlice<Half>>,
    /// As long as a head or as all of them.
    pub q_norm: Option<Vector>,
    pub k_norm: Option<Vector>,
    pub attention_output: Matrix,
    pub mlp_norms: BlockNorms,
    /// Gates, then what they gate.
    pub gate_up: Matrix,
    pub down: Matrix,
}

/// Norms of what a block reads from the residual stream and of what it adds to it.
pub(super) struct BlockNorms {
    pub before: Option<Vector>,
    pub after: Option<Vector>,
}

/// A matrix as the card computes, `[outputs][inputs]`.
pub(super) struct Dense {
    data: CudaSlice<Half>,
    outputs: usize,
    inputs: usize,
}

/// Weights of a norm.
pub(super) struct Vector {
    data: CudaSlice<Half>,
    eps: f32,
}

/// Why a model cannot run on a card.
#[derive(Debug, thiserror::Error)]
pub(super) enum WeightsError {
    #[error("the cuda backend does not do {0} yet")]
    Unsupported(&'static str),
    #[error("{tensor} is {found:?}, not {expected:?}")]
    Shape { tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{tensor} has a weight of {value}, which is out of fp16's range: use bf16")]
    OutOfRange { tensor: String, value: f32 },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// A place on the card, and the tensors that lie there one behind the other.
struct Upload<'a> {
    tensors: Vec<Tensor>,
    to: Place<'a>,
}

/// What a tensor must be.
struct Tensor {
    name: String,
    shape: Vec<usize>,
}

/// Elements that a loading thread copies at once: 8 MiB.
const PIECE: usize = 4 << 20;

// === impl CudaModel ===

impl CudaModel {
    /// Copies all weights of `model` to the card, on a few threads; those of layers take `form`.
    ///
    /// # Errors
    /// [`BackendError::Device`] when a tensor is missing or of another shape than
    /// the model's configuration says, the model needs what this backend does
    /// not do, or the card has no room.
    pub fn load(model: &Model, gpu: &Gpu, form: WeightForm) -> Result<Arc<Self>, BackendError> {
        let load = || {
            let mut loaded = Self::unset(gpu, &model.config, form)?;
            let uploads = Mutex::new(loaded.uploads());
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..threads).map(|_| scope.spawn(|| upload(gpu, &model.weights, &uploads))).collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })?;
            drop(uploads);
            Ok(Arc::new(loaded))
        };
        load().map_err(refused)
    }

    /// Weights that mean nothing, of a shape alone, made on the card.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn random(config: &ModelConfig, gpu: &Gpu, form: WeightForm) -> Result<Arc<Self>, BackendError> {
        let make = || {
            let mut model = Self::unset(gpu, config, form)?;
            for (seed, Upload { tensors, mut to }) in (1..).zip(model.uploads()) {
                // Rows of outputs keep about the size of their inputs.
                let scale = match tensors[0].shape[..] {
                    [_, inputs] => (3.0 / inputs as f32).sqrt(),
                    _ => 1.0,
                };
                to.fill(gpu, seed, scale)?;
            }
            gpu.synchronize()?;
            Ok(Arc::new(model))
        };
        make().map_err(refused)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes that a decode step reads: all weights but the looked-up embedding.
    pub fn read_bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum::<usize>() + self.output().bytes()
    }

    /// All that layers multiply with.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(Layer::matrices)
    }

    /// Shape of rows that are cached in this form, in pages of `page_tokens`.
    pub fn kv_shape(&self, form: KvForm, page_tokens: u32) -> KvShape {
        // Sizes of a checked configuration are far below 2^32.
        KvShape {
            layers: self.config.layers as u32,
            kv_heads: self.config.kv_heads as u32,
            head_dim: self.config.head_dim as u32,
            dtype: match (form, self.gpu.dtype()) {
                (KvForm::Fp8, _) => KvDtype::Fp8,
                (KvForm::Plain, Dtype::Bf16) => KvDtype::Bf16,
                (KvForm::Plain, Dtype::F16) => KvDtype::F16,
            },
            page_tokens,
        }
    }

    /// The output projection.
    pub(super) fn output(&self) -> &Dense {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    fn unset(gpu: &Gpu, config: &ModelConfig, form: WeightForm) -> Result<Self, WeightsError> {
        supported(config)?;
        if form == WeightForm::Fp8 {
            supported_in_fp8(gpu, config)?;
        }
        let ModelConfig { vocab, hidden, heads, kv_heads, head_dim, intermediate, .. } = *config;
        let matrix = |outputs, inputs| Matrix::unset(gpu, form, outputs, inputs);
        let dense = |outputs, inputs| Dense::unset(gpu, outputs, inputs);
        let norm = |len| Vector::unset(gpu, len, config.rms_eps);
        let head_norm = |heads| match config.qk_norm {
            QkNorm::None => Ok(None),
            QkNorm::Head => norm(head_dim).map(Some),
            QkNorm::Row => norm(heads * head_dim).map(Some),
        };
        let [attention_norms, mlp_norms] = norm_names(config.norms);
        let block_norms = |[before, after]: [Option<&str>; 2]| {
            let some = |name: Option<&str>| name.map(|_| norm(hidden)).transpose();
            Ok::<_, GpuError>(BlockNorms { before: some(before)?, after: some(after)? })
        };
        let biases = || gpu.unset((heads + 2 * kv_heads) * head_dim);
        let layer = |_| {
            Ok::<_, GpuError>(Layer {
                attention_norms: block_norms(attention_norms)?,
                qkv: matrix((heads + 2 * kv_heads) * head_dim, hidden)?,
                qkv_bias: config.qkv_bias.then(biases).transpose()?,
                q_norm: head_norm(heads)?,
                k_norm: head_norm(kv_heads)?,
                attention_output: matrix(hidden, heads * head_dim)?,
                mlp_norms: block_norms(mlp_norms)?,
                gate_up: matrix(2 * intermediate, hidden)?,
                down: matrix(hidden, intermediate)?,
            })
        };
        let rotaries = config.rotaries.iter().map(|rotary| gpu.upload(&rotary.frequencies));
        let model = Self {
            embedding: dense(vocab, hidden)?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: norm(hidden)?,
            output: (!config.tied_embeddings).then(|| dense(vocab, hidden)).transpose()?,
            rotaries: rotaries.collect::<Result<_, _>>()?,
            no_frequencies: gpu.zeros(8)?,
            gpu: gpu.clone(),
            config: config.clone(),
        };
        // What follows is written by other streams.
        gpu.synchronize()?;
        Ok(model)
    }

    /// Every place, the largest last.
    fn uploads(&mut self) -> Vec<Upload<'_>> {
        let ModelConfig { vocab, hidden, heads, kv_heads, head_dim, .. } = self.config;
        let (q, kv) = ([heads * head_dim, hidden], [kv_heads * head_dim, hidden]);
        let inner = [self.config.intermediate, hidden];
        let mut uploads = vec![
            Upload::of(&mut self.embedding.data, &[("model.embed_tokens.weight".into(), &[vocab, hidden])]),
            Upload::of(&mut self.norm.data, &[("model.norm.weight".into(), &[hidden])]),
        ];
        if let Some(output) = &mut self.output {
            uploads.push(Upload::of(&mut output.data, &[("lm_head.weight".into(), &[vocab, hidden])]));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            let [to_q, to_k, to_v] = ["q", "k", "v"].map(|part| name(&format!("self_attn.{part}_proj")));
            uploads.push(Upload::of(&mut layer.qkv, &[(to_q, &q), (to_k, &kv), (to_v, &kv)]));
            let gates = [(name("mlp.gate_proj"), &inner[..]), (name("mlp.up_proj"), &inner[..])];
            uploads.push(Upload::of(&mut layer.gate_up, &gates));
            if let Some(bias) = &mut layer.qkv_bias {
                let name = |part: &str| format!("model.layers.{index}.self_attn.{part}_proj.bias");
                let biases = [(name("q"), &q[..1]), (name("k"), &kv[..1]), (name("v"), &kv[..1])];
                uploads.push(Upload::of(bias, &biases));
            }
            for (norms, names) in [&mut layer.attention_norms, &mut layer.mlp_norms]
                .into_iter()
                .zip(norm_names(self.config.norms))
            {
                for (norm, part) in [&mut norms.before, &mut norms.after].into_iter().zip(names) {
                    let Some((norm, part)) = norm.as_mut().zip(part) else { continue };
                    let name = name(&format!("{part}_layernorm"));
                    uploads.push(Upload::of(&mut norm.data, &[(name, &[hidden])]));
                }
            }
            let single: [(_, Place<'_>, &[usize]); 2] = [
                ("self_attn.o_proj", (&mut layer.attention_output).into(), &[hidden, q[0]]),
                ("mlp.down_proj", (&mut layer.down).into(), &[hidden, inner[0]]),
            ];
            uploads.extend(single.map(|(part, data, shape)| Upload::of(data, &[(name(part), shape)])));
            for (part, norm) in
                [("self_attn.q_norm", &mut layer.q_norm), ("self_attn.k_norm", &mut layer.k_norm)]
            {
                let Some(norm) = norm else { continue };
                let len = norm.data.len();
                uploads.push(Upload::of(&mut norm.data, &[(name(part), &[len])]));
            }
        }
        uploads.sort_by_key(|upload| upload.to.len());
        uploads
    }
}

// === impl Layer ===

impl Layer {
    fn matrices(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.attention_output, &self.gate_up, &self.down]
    }
}

// === impl Upload ===

impl<'a> Upload<'a> {
    fn of(to: impl Into<Place<'a>>, tensors: &[(String, &[usize])]) -> Self {
        let tensor =
            |(name, shape): &(String, &[usize])| Tensor { name: name.clone(), shape: shape.to_vec() };
        Self { tensors: tensors.iter().map(tensor).collect(), to: to.into() }
    }
}

// === impl Tensor ===

impl Tensor {
    /// Its values, each rounded once, as one or more runs of whole rows.
    fn read(
        self,
        weights: &Weights,
        dtype: Dtype,
        mut take: impl FnMut(&[Half]) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        let Self { name, shape } = self;
        let found = weights.shape(&name).unwrap_or_default();
        if found != shape {
            return Err(WeightsError::Shape { tensor: name, found: found.to_vec(), expected: shape });
        }
        let [rows, cols] = shape[..] else {
            return take(&rounded(&name, &weights.vector(&name)?, dtype)?);
        };
        if dtype == Dtype::Bf16 {
            return take(bytemuck::cast_slice(&weights.matrix(&name)?.values));
        }
        let matrix = weights.rows(&name)?;
        let most = (PIECE / cols).max(1);
        for first in (0..rows).step_by(most) {
            let floats = matrix.floats(first, most.min(rows - first))?;
            take(&rounded(&name, &floats, dtype)?)?;
        }
        Ok(())
    }
}

/// Takes uploads until none is left: reads, converts and copies through page-locked memory.
fn upload(gpu: &Gpu, weights: &Weights, uploads: &Mutex<Vec<Upload<'_>>>) -> Result<(), WeightsError> {
    let gpu = gpu.beside()?;
    let mut buffers = [Pinned::zeros(&gpu, PIECE)?, Pinned::zeros(&gpu, PIECE)?];
    let mut staged = gpu.unset(PIECE)?;
    loop {
        let next = uploads.lock().pop();
        let Some(Upload { tensors, mut to }) = next else { break };
        let mut at = 0;
        for tensor in tensors {
            tensor.read(weights, gpu.dtype(), |rows| {
                for piece in rows.chunks(to.piece(PIECE)) {
                    buffers[0].get_mut()?[..piece.len()].copy_from_slice(piece);
                    to.take(&gpu, (&buffers[0], at, piece.len()), &mut staged)?;
                    buffers.swap(0, 1);
                    at += piece.len();
                }
                Ok(())
            })?;
        }
    }
    Ok(gpu.synchronize()?)
}

/// Refuses by name what is out of the dtype's range.
fn rounded(tensor: &str, values: &[f32], dtype: Dtype) -> Result<Vec<Half>, WeightsError> {
    let outside = |value: &&f32| dtype == Dtype::F16 && value.abs() >= 65_520.0;
    match values.iter().find(outside) {
        Some(&value) => Err(WeightsError::OutOfRange { tensor: tensor.to_owned(), value }),
        None => Ok(values.iter().map(|value| dtype.round(*value)).collect()),
    }
}

/// Names of the norms before and after attention, and before and after the feed-forward part.
fn norm_names(norms: Norms) -> [[Option<&'static str>; 2]; 2] {
    match norms {
        Norms::Before => [[Some("input"), None], [Some("post_attention"), None]],
        Norms::After => [[None, Some("post_attention")], [None, Some("post_feedforward")]],
        Norms::Around => {
            [[Some("input"), Some("post_attention")], [Some("pre_feedforward"), Some("post_feedforward")]]
        }
    }
}

/// Refuses by name what the passes do not do.
fn supported(config: &ModelConfig) -> Result<(), WeightsError> {
    let in_eights = |size: usize| size.is_multiple_of(8);
    let refusals = [
        (!matches!(config.head_dim, 64 | 96 | 128 | 256), "heads of another size than 64, 96, 128 or 256"),
        (
            !config.rotaries.iter().all(|rotary| in_eights(rotary.frequencies.len())),
            "rotary embeddings of another number of pairs than eights",
        ),
        (
            !in_eights(config.hidden) || !in_eights(config.intermediate),
            "widths of another number of elements than eights",
        ),
    ];
    match refusals.into_iter().find(|(is_needed, _)| *is_needed) {
        Some((_, what)) => Err(WeightsError::Unsupported(what)),
        None => Ok(()),
    }
}

fn supported_in_fp8(gpu: &Gpu, config: &ModelConfig) -> Result<(), WeightsError> {
    let ModelConfig { hidden, heads, kv_heads, head_dim, intermediate, .. } = *config;
    let sizes = [hidden, heads * head_dim, (heads + 2 * kv_heads) * head_dim, intermediate];
    let refused = match () {
        () if gpu.capability() != (9, 0) => "fp8 weights on a card that is not Hopper",
        () if !sizes.iter().all(|size| size.is_multiple_of(16)) => "fp8 weights of sizes not multiples of 16",
        () => return Ok(()),
    };
    Err(WeightsError::Unsupported(refused))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: WeightsError) -> BackendError {
    BackendError::Device(format!("cannot use the model's weights: {error}"))
}

// === impl Dense, Vector ===

impl Dense {
    pub fn unset(gpu: &Gpu, outputs: usize, inputs: usize) -> Result<Self, GpuError> {
        Ok(Self { data: gpu.unset(outputs * inputs)?, outputs, inputs })
    }

    /// How many rows of inputs `x` is.
    pub fn rows_of(&self, x: &impl Read<Half>) -> usize {
        x.len() / self.inputs
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        2 * self.data.len()
    }

    pub fn view(&self) -> View<'_> {
        View { data: self.data.as_view(), outputs: self.outputs, inputs: self.inputs }
    }
}

impl Vector {
    fn unset(gpu: &Gpu, len: usize, eps: f32) -> Result<Self, GpuError> {
        Ok(Self { data: gpu.unset(len)?, eps })
    }

    pub fn view(&self) -> Norm<'_> {
        Norm { weight: self.data.as_view(), eps: self.eps }
    }
}

impl<'a> From<&'a mut Dense> for Place<'a> {
    fn from(dense: &'a mut Dense) -> Self {
        (&mut dense.data).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_out_of_the_dtypes_range_are_refused_by_name() {
        let refused = rounded("a.weight", &[1.0, -65_520.0], Dtype::F16).unwrap_err();
        assert!(refused.to_string().starts_with("a.weight has a weight of -65520"), "{refused}");
        let of = |values: &[f32], dtype| rounded("a.weight", values, dtype).unwrap();
        assert_eq!(Dtype::F16.value(of(&[-65_519.0], Dtype::F16)[0]), -65_504.0);
        assert_eq!(Dtype::Bf16.value(of(&[1e38], Dtype::Bf16)[0]), half::bf16::from_f32(1e38).to_f32());
    }
}
