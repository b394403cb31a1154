//! What computes in this process: one copy of the model's weights and one
//! pool of threads, shared by every node of the process.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use baton_engine::{
    Engine, EngineConfig,
    backend::{
        Backend,
        cpu::{CpuBackend, CpuModel},
        mock::MockBackend,
    },
};
use baton_kernels::cpu::ComputePool;
use baton_model::{ModelConfig, ModelText};
use baton_protocol::KvShape;

use crate::config::{BackendKind, ClusterConfig, EngineSection, Precision};

/// The process's model, ready to give each node an engine.
pub struct Compute {
    /// Name under which it is served.
    pub name: String,
    /// Weights, shape and precision in one hash: only equal ones hand off to each other.
    pub fingerprint: String,
    /// Tokenizer, template, limits.
    pub text: Arc<ModelText>,
    /// Longest sequence.
    pub context_tokens: usize,
    source: Source,
}

enum Source {
    Cpu { model: Arc<CpuModel>, pool: Arc<ComputePool>, config: ModelConfig },
    Mock,
}

// === impl Compute ===

impl Compute {
    /// Loads what `config` names. Blocks.
    ///
    /// # Errors
    /// When the model is not on this machine or its files are broken.
    pub fn load(config: &ClusterConfig) -> Result<Self> {
        match config.engine.backend {
            BackendKind::Mock => Ok(Self::mock(config)),
            BackendKind::Cpu => Self::cpu(config),
        }
    }

    /// A backend of its own over the shared weights.
    pub fn backend(&self, settings: &EngineSection) -> Box<dyn Backend> {
        match &self.source {
            Source::Cpu { model, pool, .. } => {
                Box::new(CpuBackend::new(Arc::clone(model), Arc::clone(pool), settings.page_tokens))
            }
            Source::Mock => Box::new(MockBackend::new(settings.mock.clone(), settings.page_tokens)),
        }
    }

    /// The model's shape; none for the mock.
    pub fn model_config(&self) -> Option<&ModelConfig> {
        match &self.source {
            Source::Cpu { config, .. } => Some(config),
            Source::Mock => None,
        }
    }

    /// An engine of its own for one node.
    pub fn engine(&self, settings: &EngineSection) -> Engine {
        let backend = self.backend(settings);
        let mut engine = EngineConfig::new(pages(settings, backend.kv_shape()), self.context_tokens);
        engine.eos_tokens = self.text.eos_tokens().to_vec();
        engine.scheduler = settings.scheduler.clone();
        Engine::new(backend, engine)
    }

    fn cpu(config: &ClusterConfig) -> Result<Self> {
        let path = baton_model::resolve(&config.model, &baton_model::default_cache())?;
        let model = baton_model::load(&path).with_context(|| format!("cannot load {}", path.display()))?;
        let precision = match config.engine.precision {
            Precision::Fast => baton_engine::backend::cpu::Precision::Fast,
            Precision::Reference => baton_engine::backend::cpu::Precision::Reference,
        };
        let threads = match config.engine.threads {
            0 => std::thread::available_parallelism()?.get(),
            threads => threads,
        };
        let (packed, pool) = (CpuModel::load(&model, precision)?, ComputePool::new(threads)?);
        Ok(Self {
            name: served_name(&config.model),
            fingerprint: format!("{}-{:?}", model.fingerprint, config.engine.precision),
            context_tokens: model.config.context_tokens,
            text: model.text,
            source: Source::Cpu { model: packed, pool, config: model.config },
        })
    }

    fn mock(config: &ClusterConfig) -> Self {
        let text = Arc::new(ModelText::mock());
        Self {
            name: served_name(&config.model),
            fingerprint: format!("mock-{:?}", config.engine.mock),
            context_tokens: text.context_tokens(),
            text,
            source: Source::Mock,
        }
    }
}

/// A path is served under its file's name, so that no path of this machine is shown.
fn served_name(model: &str) -> String {
    Path::new(model).file_stem().map_or_else(|| model.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// Pages of a node's pool: as configured, or what fits into the configured memory.
fn pages(settings: &EngineSection, shape: &KvShape) -> usize {
    match settings.pages {
        0 => ((settings.kv_memory_mib << 20) / (shape.token_bytes() * shape.page_tokens as usize)).max(1),
        pages => pages,
    }
}
