//! A model on a card, for the nodes of this process.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use baton_engine::backend::{
    Backend, BackendError,
    cuda::{BATCH_TOKENS, CudaBackend, CudaLimits, CudaModel, KvForm, WeightForm},
};
use baton_kernels::cuda::{self, Gpu};
use baton_kv_transfer::{TransportKind, Wanted};
use baton_model::ModelConfig;
use baton_protocol::Role;

use crate::config::{ClusterConfig, Dtype, EngineSection, KvDtype, Weights};

/// Weights on a card, and who is still to compute with them.
pub struct Card {
    model: Arc<CudaModel>,
    /// Nodes whose engines do not have their share of the memory yet.
    nodes_left: AtomicUsize,
    /// What their sessions need besides, in bytes.
    for_sessions: usize,
}

/// What NCCL takes of a card for a pair, and more.
const NCCL_BYTES: usize = 2 << 30;

// === impl Card ===

impl Card {
    /// Has the weights brought to the card that `config` names, in the form that it names.
    ///
    /// # Errors
    /// When there is no such card, or it cannot hold or run the model.
    pub fn load(
        config: &ClusterConfig,
        bring: impl FnOnce(&Gpu, WeightForm) -> Result<Arc<CudaModel>, BackendError>,
    ) -> Result<Self> {
        let gpu = Gpu::open(config.engine.device, config.engine.dtype.into())
            .context("engine.backend=cuda cannot be used here")?;
        let works = |roles: &[Role]| roles.iter().any(|role| *role != Role::Coordinator);
        let nodes = config.nodes.iter().filter(|node| works(&node.roles)).count();
        let model = bring(&gpu, config.engine.weights.into())?;
        let has_nccl = config.transfer.transport == Wanted::Only(TransportKind::Nccl);
        let for_sessions = if has_nccl { NCCL_BYTES } else { 0 };
        Ok(Self { model, nodes_left: AtomicUsize::new(nodes.max(1)), for_sessions })
    }

    /// A backend with a stream and a workspace of its own.
    ///
    /// # Errors
    /// When the card has no room for the workspace.
    pub fn backend(&self, settings: &EngineSection) -> Result<CudaBackend> {
        let scheduler = &settings.scheduler;
        let context = self.model.config().context_tokens;
        let batch_tokens = match scheduler.max_batch_tokens {
            0 => BATCH_TOKENS,
            tokens => tokens,
        };
        let mut limits = CudaLimits::new(batch_tokens, scheduler.max_sequences, context);
        limits.kv = settings.kv_dtype.into();
        limits.deterministic = settings.deterministic;
        limits.cache = Some(algorithms(&baton_model::default_cache()));
        let mut backend = CudaBackend::new(Arc::clone(&self.model), limits)?;
        // Some seconds, once for a card and a model's shape; then they are on disk.
        backend.tune()?;
        Ok(backend)
    }

    /// The next node's share of the pages that fit into what is left.
    pub fn share_of_pages(&self, backend: &dyn Backend) -> usize {
        let shape = backend.kv_shape();
        let for_sessions = self.for_sessions / (shape.token_bytes() * shape.page_tokens as usize);
        let left = backend.pages_left().unwrap_or(0).saturating_sub(for_sessions);
        let take = |nodes: usize| Some(nodes.saturating_sub(1).max(1));
        let nodes = self.nodes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        (left / nodes.unwrap_or(1)).max(1)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }
}

/// Where found algorithms are kept.
fn algorithms(cache: &Path) -> std::path::PathBuf {
    cache.join("gemm")
}

impl From<Weights> for WeightForm {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Fp8 => Self::Fp8,
            Weights::Auto | Weights::Bf16 | Weights::Int4 => Self::Plain,
        }
    }
}

impl From<KvDtype> for KvForm {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::Auto => Self::Plain,
            KvDtype::Fp8 => Self::Fp8,
        }
    }
}

impl From<Dtype> for cuda::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::Fp16 => Self::F16,
        }
    }
}
