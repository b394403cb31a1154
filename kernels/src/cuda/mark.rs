//! Places in streams that other streams wait for.

use std::fmt;

use cudarc::driver::CudaEvent;

use super::{
    Gpu,
    error::{GpuError, Named},
};

/// A place in a stream, set again and again. Nobody waits for one that was never set.
pub struct Mark(CudaEvent);

// === impl Mark ===

impl Mark {
    /// One that is not set.
    ///
    /// # Errors
    /// When the driver gives no more events.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        gpu.context().new_event(None).named("cuEventCreate").map(Self)
    }

    /// Sets it behind everything enqueued on `gpu`'s stream.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn set(&self, gpu: &Gpu) -> Result<(), GpuError> {
        self.0.record(gpu.stream()).named("cuEventRecord")
    }

    /// What is enqueued on `gpu`'s stream from here on waits for where it is set now.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn awaited(&self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.stream().wait(&self.0).named("cuStreamWaitEvent")
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark").finish_non_exhaustive()
    }
}
