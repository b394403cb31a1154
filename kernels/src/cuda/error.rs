//! What can go wrong on a card.

use cudarc::{cublaslt::result::CublasError, driver::DriverError};

/// Failure to find, drive or rightly use a card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no libcuda on this machine.
    #[error("no NVIDIA driver: libcuda.so is not on this machine")]
    NoDriver,
    /// There is a driver, but no such card.
    #[error("no GPU {ordinal}: the driver shows {found}")]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// Kernels were not compiled for this card.
    #[error("kernel image {image} does not run on {card} (compute capability {major}.{minor}): {source}")]
    NoImage {
        /// The kernel source's name.
        image: &'static str,
        /// Name of the card.
        card: String,
        /// Of the compute capability.
        major: i32,
        /// Of the compute capability.
        minor: i32,
        /// What the driver said.
        source: DriverError,
    },
    /// There is no kernel of that name.
    #[error("no kernel {function} in {image}.cu")]
    NoKernel {
        /// The kernel source's name.
        image: &'static str,
        /// The function in it.
        function: &'static str,
    },
    /// There is no cuBLASLt on this machine.
    #[error("no cuBLASLt: libcublasLt.so is not on the library path")]
    NoBlas,
    /// A buffer or a size does not fit the op.
    #[error("{op}: {what} is {found}, needs {needed}")]
    Shape {
        /// The op.
        op: &'static str,
        /// What is off.
        what: &'static str,
        /// Its size.
        found: usize,
        /// What it must be, or be a multiple of, or have at least.
        needed: usize,
    },
    /// A call of the driver failed.
    #[error("{call}: {source}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// A call of cuBLASLt failed.
    #[error("{call}: {source}")]
    Blas {
        /// What was called.
        call: &'static str,
        /// What cuBLASLt said.
        source: CublasError,
    },
    /// NCCL cannot be used on this machine.
    #[error("no NCCL: {reason}")]
    NoNccl {
        /// Why.
        reason: String,
    },
    /// A call of NCCL failed.
    #[error("{call}: {reason}")]
    Nccl {
        /// What was called.
        call: &'static str,
        /// What NCCL said.
        reason: String,
    },
    /// No algorithm of cuBLASLt does a product.
    #[error("cuBLASLt has no algorithm for a product of {m}x{n}x{k}")]
    NoAlgorithm {
        /// Rows of the input.
        m: usize,
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
}

/// Names the call that failed.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, GpuError>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, GpuError> {
        self.map_err(|source| GpuError::Driver { call, source })
    }
}

impl<T> Named<T> for Result<T, CublasError> {
    fn named(self, call: &'static str) -> Result<T, GpuError> {
        self.map_err(|source| GpuError::Blas { call, source })
    }
}

/// `Err` unless `found == needed`.
pub(crate) fn exactly(
    op: &'static str,
    what: &'static str,
    found: usize,
    needed: usize,
) -> Result<(), GpuError> {
    if found == needed { Ok(()) } else { Err(GpuError::Shape { op, what, found, needed }) }
}

/// `Err` unless `found >= needed`.
pub(crate) fn at_least(
    op: &'static str,
    what: &'static str,
    found: usize,
    needed: usize,
) -> Result<(), GpuError> {
    if found >= needed { Ok(()) } else { Err(GpuError::Shape { op, what, found, needed }) }
}

/// `Err` unless `found` is a multiple of `needed` and not 0.
pub(crate) fn multiple(
    op: &'static str,
    what: &'static str,
    found: usize,
    needed: usize,
) -> Result<(), GpuError> {
    let is_multiple = found > 0 && found.is_multiple_of(needed);
    if is_multiple { Ok(()) } else { Err(GpuError::Shape { op, what, found, needed }) }
}
