//! Device memory as ops take it.

use cudarc::driver::{CudaView, DevicePtr, DevicePtrMut};

/// Memory an op reads: a `CudaSlice` or a view of one.
pub trait Read<T>: DevicePtr<T> {}

impl<T, D: DevicePtr<T>> Read<T> for D {}

/// Memory an op writes: a `CudaSlice` or a mutable view of one.
pub trait Write<T>: DevicePtrMut<T> {}

impl<T, D: DevicePtrMut<T>> Write<T> for D {}

/// A matrix of weights, `[outputs][inputs]`.
#[derive(Debug)]
pub struct Weights<'a, T = half::bf16> {
    /// `outputs * inputs` elements.
    pub data: CudaView<'a, T>,
    /// Rows.
    pub outputs: usize,
    /// Elements of a row.
    pub inputs: usize,
}
