//! Ops recorded once, replayed with one call.
#![expect(unsafe_code, reason = "says that a graph may move between threads")]

use std::fmt;

use cudarc::driver::{CudaGraph, sys};

use super::{
    Gpu,
    error::{GpuError, Named},
};

/// Ops recorded on one stream. Replaying uses the very memory that was named
/// when recording: the caller keeps it allocated as long as the graph.
pub struct Graph {
    graph: CudaGraph,
}

// === impl Graph ===

impl Graph {
    /// Records what `ops` enqueues on `gpu`'s stream; nothing runs. `ops` must
    /// neither allocate nor wait.
    ///
    /// # Errors
    /// When `ops` fails or did something that cannot be recorded.
    pub fn record(gpu: &Gpu, ops: impl FnOnce(&Gpu) -> Result<(), GpuError>) -> Result<Self, GpuError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream().begin_capture(mode).named("cuStreamBeginCapture")?;
        let recorded = ops(gpu);
        // Ends also after a failure, else the stream would stay unusable.
        let graph = gpu.stream().end_capture(sys::CUgraphInstantiate_flags(0)).named("cuStreamEndCapture");
        recorded?;
        let graph =
            graph?.ok_or(GpuError::Shape { op: "graph", what: "ops recorded", found: 0, needed: 1 })?;
        graph.upload().named("cuGraphUpload")?;
        Ok(Self { graph })
    }

    /// Enqueues all of it on the stream it was recorded on.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn replay(&self) -> Result<(), GpuError> {
        self.graph.launch().named("cuGraphLaunch")
    }
}

// SAFETY: a graph may be used by any one thread at a time, and `replay` only
// reads it on our side.
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}
