//! Device memory as ops take it.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use super::Half;

/// Memory an op reads: a `CudaSlice` or a view of one.
pub trait Read<T>: DevicePtr<T> {}

impl<T, D: DevicePtr<T>> Read<T> for D {}

/// Memory an op writes: a `CudaSlice` or a mutable view of one.
pub trait Write<T>: DevicePtrMut<T> {}

impl<T, D: DevicePtrMut<T>> Write<T> for D {}

/// A matrix of weights, `[outputs][inputs]`.
#[derive(Debug)]
pub struct Weights<'a, T = Half> {
    /// `outputs * inputs` elements.
    pub data: CudaView<'a, T>,
    /// Rows.
    pub outputs: usize,
    /// Elements of a row.
    pub inputs: usize,
}

/// A matrix of e4m3 with a scale for each row, `[rows][width]`: an element stands for itself
/// times its row's scale.
#[derive(Debug)]
pub struct Scaled<'a> {
    /// `rows * width` elements.
    pub data: CudaView<'a, u8>,
    /// One for each row.
    pub scales: CudaView<'a, f32>,
    /// Elements of a row.
    pub width: usize,
}

/// As [`Scaled`], to be written.
#[derive(Debug)]
pub struct ScaledMut<'a> {
    /// `rows * width` elements.
    pub data: CudaViewMut<'a, u8>,
    /// One for each row.
    pub scales: CudaViewMut<'a, f32>,
    /// Elements of a row.
    pub width: usize,
}

// === impl Scaled, ScaledMut ===

impl<'a> Scaled<'a> {
    /// All of `data`, in rows of `width`.
    #[must_use]
    pub fn new(data: &'a CudaSlice<u8>, scales: &'a CudaSlice<f32>, width: usize) -> Self {
        Self { data: data.as_view(), scales: scales.as_view(), width }
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.scales.len()
    }
}

impl<'a> ScaledMut<'a> {
    /// All of `data`, in rows of `width`.
    #[must_use]
    pub fn new(data: &'a mut CudaSlice<u8>, scales: &'a mut CudaSlice<f32>, width: usize) -> Self {
        Self { data: data.as_view_mut(), scales: scales.as_view_mut(), width }
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// What was written.
    #[must_use]
    pub fn as_read(&self) -> Scaled<'_> {
        Scaled { data: self.data.as_view(), scales: self.scales.as_view(), width: self.width }
    }
}
