//! Weights of a product in the form they are held in.

use baton_kernels::cuda::{
    Gpu, GpuError, Half, Narrow, NarrowScaled, Pinned, Scaled, ScaledMut,
    cudarc::driver::{CudaSlice, CudaViewMut},
    quantise::quantise,
    random::fill_uniform,
};

use super::weights::Dense;

/// In what form a card holds the weights of layers; all others are as it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightForm {
    /// In the dtype that the card computes in.
    #[default]
    Plain,
    /// In e4m3, with a scale for each output. They are multiplied with rows in e4m3 too, each
    /// with a scale of its own. On Hopper alone.
    Fp8,
}

/// Weights that a layer multiplies with.
pub(super) enum Matrix {
    Plain(Dense),
    Fp8(Fp8),
}

/// `[outputs][inputs]`, with a scale for each output.
pub(super) struct Fp8 {
    data: CudaSlice<u8>,
    scales: CudaSlice<f32>,
    inputs: usize,
}

/// Where elements go to.
pub(super) enum Place<'a> {
    Plain(CudaViewMut<'a, Half>),
    /// They are rounded on the card.
    Fp8(ScaledMut<'a>),
}

// === impl Matrix ===

impl Matrix {
    pub fn unset(gpu: &Gpu, form: WeightForm, outputs: usize, inputs: usize) -> Result<Self, GpuError> {
        Ok(match form {
            WeightForm::Plain => Self::Plain(Dense::unset(gpu, outputs, inputs)?),
            WeightForm::Fp8 => {
                let (data, scales) = (gpu.unset(outputs * inputs)?, gpu.unset(outputs)?);
                Self::Fp8(Fp8 { data, scales, inputs })
            }
        })
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(dense) => dense.bytes(),
            Self::Fp8(Fp8 { data, scales, .. }) => data.len() + 4 * scales.len(),
        }
    }

    /// Whether the kernel for few rows multiplies with it.
    pub fn is_narrow(&self, gpu: &Gpu) -> bool {
        match self {
            Self::Plain(dense) => Narrow::new(gpu, dense.view()).is_some(),
            Self::Fp8(scaled) => NarrowScaled::new(gpu, scaled.view()).is_ok(),
        }
    }
}

// === impl Fp8 ===

impl Fp8 {
    pub fn view(&self) -> Scaled<'_> {
        Scaled::new(&self.data, &self.scales, self.inputs)
    }
}

// === impl Place ===

impl Place<'_> {
    /// In elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(data) => data.len(),
            Self::Fp8(scaled) => scaled.data.len(),
        }
    }

    /// The most elements up to `most` that can be taken at once.
    pub fn piece(&self, most: usize) -> usize {
        match self {
            Self::Plain(_) => most,
            Self::Fp8(scaled) => (most / scaled.width).max(1) * scaled.width,
        }
    }

    /// Enqueues that elements from `at` on become the first `len` of `from`; `staged` is as long.
    pub fn take(
        &mut self,
        gpu: &Gpu,
        (from, at, len): (&Pinned<Half>, usize, usize),
        staged: &mut CudaSlice<Half>,
    ) -> Result<(), GpuError> {
        match self {
            Self::Plain(data) => from.copy_to(gpu, 0..len, &mut data.slice_mut(at..at + len)),
            Self::Fp8(ScaledMut { data, scales, width }) => {
                from.copy_to(gpu, 0..len, &mut staged.slice_mut(..len))?;
                let rows = at / *width..(at + len) / *width;
                let (data, scales) = (data.slice_mut(at..at + len), scales.slice_mut(rows));
                quantise(gpu, &staged.slice(..len), &mut ScaledMut { data, scales, width: *width })
            }
        }
    }

    /// Enqueues that all become numbers from `[-scale, scale)`.
    pub fn fill(&mut self, gpu: &Gpu, seed: u64, scale: f32) -> Result<(), GpuError> {
        match self {
            Self::Plain(data) => fill_uniform(gpu, seed, scale, data),
            Self::Fp8(scaled) => {
                let mut values = gpu.unset(scaled.data.len())?;
                fill_uniform(gpu, seed, scale, &mut values)?;
                quantise(gpu, &values, scaled)
            }
        }
    }
}

impl<'a> From<&'a mut CudaSlice<Half>> for Place<'a> {
    fn from(data: &'a mut CudaSlice<Half>) -> Self {
        Self::Plain(data.as_view_mut())
    }
}

impl<'a> From<&'a mut Matrix> for Place<'a> {
    fn from(matrix: &'a mut Matrix) -> Self {
        match matrix {
            Matrix::Plain(dense) => dense.into(),
            Matrix::Fp8(Fp8 { data, scales, inputs }) => Self::Fp8(ScaledMut::new(data, scales, *inputs)),
        }
    }
}
