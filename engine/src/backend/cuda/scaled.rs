//! Products with weights in e4m3. A row of inputs is rounded to e4m3 before each, with a scale
//! of its own, whatever kernel multiplies: what comes out depends on the row alone, up to the
//! order of sums.

use baton_kernels::cuda::{
    GemmScaled, Gpu, GpuError, Half, NarrowScaled, Read, Scaled, ScaledMut, Write,
    cudarc::driver::CudaSlice,
    gate::{Activation, gate},
    gemm::{Sizes, Then},
    quantise::{quantise, quantise_norm},
};
use baton_model::ModelConfig;

use super::{CudaLimits, matrix::Fp8, pass::MAX_BAND_ROWS, products::Normed};

/// cuBLASLt, and a place for the rounded rows.
pub(super) struct ScaledProducts {
    gemm: GemmScaled,
    /// Products of at most this many rows are [`NarrowScaled`]'s.
    narrow_rows: usize,
    data: CudaSlice<u8>,
    scales: CudaSlice<f32>,
}

// === impl ScaledProducts ===

impl ScaledProducts {
    pub fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        limits: &CudaLimits,
        narrow_rows: usize,
    ) -> Result<Self, GpuError> {
        let attention = config.hidden.max(config.heads * config.head_dim);
        let elements = (limits.rows * attention).max(limits.rows.min(MAX_BAND_ROWS) * config.intermediate);
        Ok(Self {
            gemm: GemmScaled::new(gpu, limits.cache.as_deref())?,
            narrow_rows,
            data: gpu.unset(elements)?,
            scales: gpu.unset(limits.rows)?,
        })
    }

    /// Finds the fastest algorithms for those of `shapes` that are not [`NarrowScaled`]'s.
    pub fn tune(&self, shapes: &[Sizes], then: Then) -> Result<(), GpuError> {
        let many: Vec<Sizes> = shapes.iter().copied().filter(|sizes| sizes.m > self.narrow_rows).collect();
        self.gemm.tune(&many, then).map(drop)
    }

    /// `out = weights * norm(x)`
    pub fn run(
        &mut self,
        gpu: &Gpu,
        weights: &Fp8,
        input: &Normed<'_>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        let weights = weights.view();
        let x = normed(gpu, (&mut self.data, &mut self.scales), input, weights.width)?;
        match narrow(gpu, &x, weights, self.narrow_rows) {
            Ok(product) => product.run(gpu, &x.as_read(), out),
            Err(weights) => self.gemm.run(&weights, &x.as_read(), out),
        }
    }

    /// `out = activation(gates * norm(x)) * (ups * norm(x))`; `both` is a place for gates and ups.
    pub fn gated(
        &mut self,
        gpu: &Gpu,
        (weights, activation): (&Fp8, Activation),
        input: &Normed<'_>,
        (both, out): (&mut CudaSlice<Half>, &mut impl Write<Half>),
    ) -> Result<(), GpuError> {
        let weights = weights.view();
        let x = normed(gpu, (&mut self.data, &mut self.scales), input, weights.width)?;
        match narrow(gpu, &x, weights, self.narrow_rows) {
            Ok(product) => product.gated(gpu, activation, &x.as_read(), out),
            Err(weights) => {
                let mut both = both.slice_mut(..2 * out.len());
                self.gemm.run(&weights, &x.as_read(), &mut both)?;
                gate(gpu, activation, out.len() / x.rows(), &both, out)
            }
        }
    }

    /// `weights * x`
    pub fn plain(
        &mut self,
        gpu: &Gpu,
        weights: &Fp8,
        x: &impl Read<Half>,
        (out, then): (&mut impl Write<Half>, Then),
    ) -> Result<(), GpuError> {
        let weights = weights.view();
        let mut rounded = place((&mut self.data, &mut self.scales), x.len(), weights.width);
        quantise(gpu, x, &mut rounded)?;
        match (narrow(gpu, &rounded, weights, self.narrow_rows), then) {
            (Ok(product), Then::Store) => product.run(gpu, &rounded.as_read(), out),
            (Ok(product), Then::Add) => product.add(gpu, &rounded.as_read(), out),
            (Err(weights), Then::Store) => self.gemm.run(&weights, &rounded.as_read(), out),
            (Err(weights), Then::Add) => self.gemm.add(&weights, &rounded.as_read(), out),
        }
    }
}

/// Room for rows of `width`, `elements` in all.
fn place<'a>(
    (data, scales): (&'a mut CudaSlice<u8>, &'a mut CudaSlice<f32>),
    elements: usize,
    width: usize,
) -> ScaledMut<'a> {
    ScaledMut { data: data.slice_mut(..elements), scales: scales.slice_mut(..elements / width), width }
}

/// Enqueues the norm, if there is one, and the rounding; gives what they make.
fn normed<'a>(
    gpu: &Gpu,
    to: (&'a mut CudaSlice<u8>, &'a mut CudaSlice<f32>),
    input: &Normed<'_>,
    width: usize,
) -> Result<ScaledMut<'a>, GpuError> {
    let mut rounded = place(to, input.x.len(), width);
    match input.norm {
        Some(norm) => quantise_norm(gpu, &norm.view(), &input.x, &mut rounded)?,
        None => quantise(gpu, &input.x, &mut rounded)?,
    }
    Ok(rounded)
}

/// The product of few rows; of more, the weights again.
fn narrow<'a>(
    gpu: &Gpu,
    x: &ScaledMut<'_>,
    weights: Scaled<'a>,
    most_rows: usize,
) -> Result<NarrowScaled<'a>, Scaled<'a>> {
    match x.rows() <= most_rows {
        true => NarrowScaled::new(gpu, weights),
        false => Err(weights),
    }
}
