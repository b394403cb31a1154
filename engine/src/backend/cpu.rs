//! The CPU backend: decoders of every family on the kernels of `baton-kernels`.
//!
//! - [`weights`]: [`CpuModel`], packed once and shared by the backends of a process
//! - `loading`: matrices on their way from their files into panels
//! - `pass`: one step through all layers
//! - `cached`: rows of the KV cache as elements

mod cached;
mod loading;
mod pass;
#[cfg(test)]
mod tests;
pub mod weights;

use std::sync::Arc;

use baton_kernels::cpu::{ComputePool, PoolError};
use baton_protocol::{KvDtype, KvShape};
use half::bf16;
use serde::{Deserialize, Serialize};

pub use loading::{Loading, Progress, WeightForm};
pub use weights::CpuModel;

use super::{Backend, BackendError};
use crate::{
    batch::{Batch, Logits},
    kv::{KvMemory, KvStore},
};
use pass::Pass;

/// How exactly to compute with weights as they are held ([`WeightForm`]). Sums are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// What attention reads and returns is rounded to bf16: queries, cached
    /// rows, softmax weights, its output.
    #[default]
    Fast,
    /// Everything but the weights is f32.
    Reference,
}

/// A model on the processors of this machine.
pub struct CpuBackend {
    model: Arc<CpuModel>,
    pool: Arc<ComputePool>,
    shape: KvShape,
    memory: Arc<KvMemory>,
}

// === impl Precision ===

impl Precision {
    /// Type of the elements of cached rows.
    pub fn kv_dtype(self) -> KvDtype {
        match self {
            Self::Fast => KvDtype::Bf16,
            Self::Reference => KvDtype::F32,
        }
    }

    /// Threads to compute with.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn pool(self, threads: usize) -> Result<Arc<ComputePool>, PoolError> {
        match self {
            Self::Fast => ComputePool::new(threads),
            Self::Reference => ComputePool::exact(threads),
        }
    }
}

// === impl CpuBackend ===

impl CpuBackend {
    /// A backend that caches rows in pages of `page_tokens` tokens.
    ///
    /// # Panics
    /// When the model is to be computed exactly and the pool does not.
    pub fn new(model: Arc<CpuModel>, pool: Arc<ComputePool>, page_tokens: u32) -> Self {
        let exact = model.precision() == Precision::Fast || pool.is_exact();
        assert!(exact, "reference precision with {}", pool.isa().as_str());
        let shape = model.kv_shape(page_tokens);
        let memory = Arc::new(KvMemory::new(shape.clone(), 0));
        Self { model, pool, shape, memory }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn kv_shape(&self) -> &KvShape {
        &self.shape
    }

    fn vocab_tokens(&self) -> usize {
        self.model.config().vocab
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.memory = Arc::new(KvMemory::new(self.shape.clone(), pages));
        Ok(Arc::<KvMemory>::clone(&self.memory))
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        batch.check(&self.shape, self.memory.pages(), self.vocab_tokens())?;
        let (model, pool, memory) = (&*self.model, &*self.pool, &*self.memory);
        let compute = |report: &mut dyn FnMut(usize)| match model.precision() {
            Precision::Fast => Pass::<bf16>::new(model, pool, memory, batch).run(report),
            Precision::Reference => Pass::<f32>::new(model, pool, memory, batch).run(report),
        };
        // Waking the caller for each layer would take its time from one token; a chunk of a prompt,
        // which may be on its way to another node, has time for that.
        let is_short = batch.sequences.iter().all(|sequence| sequence.end - sequence.start == 1);
        let logits = match is_short {
            true => pool.run(|| compute(&mut |_| ())),
            false => pool.drive(compute, layer_done),
        };
        if is_short {
            (0..model.config().layers).for_each(layer_done);
        }
        Ok(logits)
    }
}
