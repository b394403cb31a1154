//! Products of a step with the model's weights, by the kernel that is fastest for their rows.

use baton_kernels::cuda::{
    Gemm, Gemv, Gpu, GpuError, Half, Narrow, Read, Wide, Write,
    cudarc::driver::{CudaSlice, CudaView, CudaViewMut},
    gate::{Activation, gate},
    gemm::{Sizes, Then},
    narrow,
    rope::KvForm,
};
use baton_model::ModelConfig;

use super::{
    CudaLimits, CudaModel,
    matrix::Matrix,
    scaled::ScaledProducts,
    weights::{Dense, Vector},
};

/// Products of at most this many rows are [`Gemv`]'s; of at most [`FEWER_ROWS`] where [`Narrow`] is
/// faster for eight, between attention over pages of elements on Hopper.
const FEW_ROWS: usize = 8;
const FEWER_ROWS: usize = 4;

/// What steps of so few rows leave of a multiprocessor's memory to shared memory, in percent:
/// enough for attention, and the rest to L1, through which [`Gemv`] reads.
const FEW_ROWS_SHARE: u32 = 58;

/// Products of at most this many rows are faster without cuBLASLt, where [`Narrow`] does them.
const NARROW_ROWS: usize = 64;

/// Gates and ups of at least this many rows are [`Wide`]'s, which does not write them.
const WIDE_ROWS: usize = 1024;

/// A model has all its layers in one form.
const NO_SCALED: GpuError = GpuError::NoKernel { image: "gemm_narrow", function: "for a layer in fp8" };

/// cuBLASLt, and what else products need.
pub(super) struct Products {
    gemm: Gemm,
    activation: Activation,
    /// Products of at most so many rows are [`Gemv`]'s.
    few_rows: usize,
    /// Whether [`Narrow`] does all, in bands.
    deterministic: bool,
    /// For weights in fp8. Then [`Gemv`] is not used: all ops divide memory alike.
    scaled: Option<ScaledProducts>,
}

/// Rows that a product reads after their norm, if they have one, and a place for the normed ones.
pub(super) struct Normed<'a> {
    pub norm: Option<&'a Vector>,
    pub x: CudaView<'a, Half>,
    pub normed: CudaViewMut<'a, Half>,
}

/// Who does a product.
enum Kernel<'a> {
    Narrow(Narrow<'a>),
    Gemv,
    Gemm,
}

// === impl Products ===

impl Products {
    pub fn new(gpu: &Gpu, model: &CudaModel, limits: &CudaLimits) -> Result<Self, GpuError> {
        let all_narrow = || model.matrices().all(|matrix| matrix.is_narrow(gpu));
        if limits.deterministic && !(all_narrow() && Narrow::new(gpu, model.output().view()).is_some()) {
            return Err(GpuError::NoKernel { image: "gemm_narrow", function: "for a deterministic step" });
        }
        let activation = match model.config().activation {
            baton_model::Activation::Silu => Activation::Silu,
            baton_model::Activation::GeluTanh => Activation::GeluTanh,
        };
        let has_scales = model.matrices().any(|matrix| matches!(matrix, Matrix::Fp8(_)));
        let narrow_rows = if limits.deterministic { narrow::MAX_ROWS } else { NARROW_ROWS };
        let scaled = has_scales.then(|| ScaledProducts::new(gpu, model.config(), limits, narrow_rows));
        let is_fewer = gpu.capability() == (9, 0) && limits.kv == KvForm::Plain;
        Ok(Self {
            few_rows: if is_fewer { FEWER_ROWS } else { FEW_ROWS },
            gemm: Gemm::new(gpu, limits.cache.as_deref())?,
            activation,
            deterministic: limits.deterministic,
            scaled: scaled.transpose()?,
        })
    }

    /// Finds the fastest algorithms for the products of steps up to `limits`.
    pub fn tune(&self, config: &ModelConfig, limits: &CudaLimits) -> Result<(), GpuError> {
        let ModelConfig { hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = *config;
        let few = [16, 32, 64, 96, 128, 192, 256].into_iter().filter(|rows| *rows <= limits.sequences);
        let many = [512, 1024, 2048, 4096, 8192, 16384].into_iter().filter(|rows| *rows <= limits.rows);
        let rows: Vec<usize> = few.clone().chain(many).collect();
        let logits: Vec<Sizes> = few.map(|m| Sizes { n: vocab, k: hidden, m }).collect();
        self.gemm.tune(&logits, Then::Store)?;
        let stored = [((heads + 2 * kv_heads) * head_dim, hidden), (2 * intermediate, hidden)];
        let added = [(hidden, heads * head_dim), (hidden, intermediate)];
        for (products, then) in [(stored, Then::Store), (added, Then::Add)] {
            let shape = |(n, k)| rows.iter().map(move |m| Sizes { n, k, m: *m });
            let shapes: Vec<Sizes> = products.into_iter().flat_map(shape).collect();
            match &self.scaled {
                Some(scaled) => scaled.tune(&shapes, then)?,
                None => drop(self.gemm.tune(&shapes, then)?),
            }
        }
        Ok(())
    }

    fn kernel<'a>(&self, gpu: &Gpu, weights: &'a Dense, x: &impl Read<Half>) -> Kernel<'a> {
        let rows = weights.rows_of(x);
        let narrow_rows = match rows {
            _ if self.deterministic => 1..=narrow::MAX_ROWS,
            _ if self.scaled.is_some() => 1..=NARROW_ROWS,
            _ => self.few_rows + 1..=NARROW_ROWS,
        };
        let narrow = narrow_rows.contains(&rows).then(|| Narrow::new(gpu, weights.view())).flatten();
        match narrow {
            Some(product) => Kernel::Narrow(product),
            None if rows <= self.few_rows => Kernel::Gemv,
            None => Kernel::Gemm,
        }
    }

    /// How all ops of a step of so many rows divide a multiprocessor's memory.
    pub fn divided(&self, gpu: &Gpu, rows: usize) -> Gpu {
        let is_few = rows <= self.few_rows && !self.deterministic && self.scaled.is_none();
        gpu.sharing(if is_few { FEW_ROWS_SHARE } else { 100 })
    }

    /// `out = weights * norm(x)`
    pub fn run(
        &mut self,
        gpu: &Gpu,
        weights: &Matrix,
        mut input: Normed<'_>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        let weights = match (weights, &mut self.scaled) {
            (Matrix::Plain(weights), _) => weights,
            (Matrix::Fp8(weights), Some(scaled)) => return scaled.run(gpu, weights, &input, out),
            (Matrix::Fp8(_), None) => return Err(NO_SCALED),
        };
        match self.kernel(gpu, weights, &input.x) {
            Kernel::Narrow(product) => product.run(gpu, &input.computed(gpu)?, out),
            Kernel::Gemv => Gemv::new(weights.view()).run(gpu, &input.computed(gpu)?, out),
            Kernel::Gemm => self.gemm.run(&weights.view(), &input.computed(gpu)?, out),
        }
    }

    /// As [`run`](Self::run), in f32: for logits.
    pub fn run_f32(
        &self,
        gpu: &Gpu,
        weights: &Dense,
        mut input: Normed<'_>,
        out: &mut impl Write<f32>,
    ) -> Result<(), GpuError> {
        match self.kernel(gpu, weights, &input.x) {
            Kernel::Narrow(product) => product.run_f32(gpu, &input.computed(gpu)?, out),
            Kernel::Gemv => Gemv::new(weights.view()).run_f32(gpu, &input.computed(gpu)?, out),
            Kernel::Gemm => self.gemm.run(&weights.view(), &input.computed(gpu)?, out),
        }
    }

    /// `out = activation(gates * norm(x)) * (ups * norm(x))`; `both` is a place for gates and ups.
    pub fn gated(
        &mut self,
        gpu: &Gpu,
        weights: &Matrix,
        mut input: Normed<'_>,
        (both, out): (&mut CudaSlice<Half>, &mut impl Write<Half>),
    ) -> Result<(), GpuError> {
        let weights = match (weights, &mut self.scaled) {
            (Matrix::Plain(weights), _) => weights,
            (Matrix::Fp8(weights), Some(scaled)) => {
                return scaled.gated(gpu, (weights, self.activation), &input, (both, out));
            }
            (Matrix::Fp8(_), None) => return Err(NO_SCALED),
        };
        let rows = weights.rows_of(&input.x);
        match self.kernel(gpu, weights, &input.x) {
            Kernel::Narrow(product) => product.gated(gpu, self.activation, &input.computed(gpu)?, out),
            Kernel::Gemv => Gemv::new(weights.view()).gated(gpu, self.activation, &input.computed(gpu)?, out),
            Kernel::Gemm => {
                if rows >= WIDE_ROWS
                    && let Some(product) = Wide::new(gpu, weights.view())
                {
                    return product.gated(gpu, self.activation, &input.computed(gpu)?, out);
                }
                let mut both = both.slice_mut(..2 * out.len());
                self.gemm.run(&weights.view(), &input.computed(gpu)?, &mut both)?;
                gate(gpu, self.activation, out.len() / rows.max(1), &both, out)
            }
        }
    }

    /// `weights * x`
    pub fn plain(
        &mut self,
        gpu: &Gpu,
        weights: &Matrix,
        x: &impl Read<Half>,
        (out, then): (&mut impl Write<Half>, Then),
    ) -> Result<(), GpuError> {
        let weights = match (weights, &mut self.scaled) {
            (Matrix::Plain(weights), _) => weights,
            (Matrix::Fp8(weights), Some(scaled)) => return scaled.plain(gpu, weights, x, (out, then)),
            (Matrix::Fp8(_), None) => return Err(NO_SCALED),
        };
        match (self.kernel(gpu, weights, x), then) {
            (Kernel::Narrow(product), Then::Store) => product.run(gpu, x, out),
            (Kernel::Narrow(product), Then::Add) => product.add(gpu, x, out),
            (Kernel::Gemv, Then::Store) => Gemv::new(weights.view()).run(gpu, x, out),
            (Kernel::Gemv, Then::Add) => Gemv::new(weights.view()).add(gpu, x, out),
            (Kernel::Gemm, Then::Store) => self.gemm.run(&weights.view(), x, out),
            (Kernel::Gemm, Then::Add) => self.gemm.add(&weights.view(), x, out),
        }
    }
}

// === impl Normed ===

impl Normed<'_> {
    /// What the product reads; enqueues the norm.
    fn computed(&mut self, gpu: &Gpu) -> Result<CudaView<'_, Half>, GpuError> {
        let Some(norm) = self.norm else { return Ok(self.x.slice(..)) };
        norm.view().run(gpu, &self.x, &mut self.normed)?;
        Ok(self.normed.as_view())
    }
}
