//! What computes in this process: one copy of the model's weights and one
//! pool of threads, shared by every node of the process.

#[cfg(feature = "cuda")]
mod cuda;

use std::{num::NonZero, path::Path, sync::Arc, thread::available_parallelism};

use anyhow::{Context, Result};
#[cfg(feature = "cuda")]
use baton_engine::backend::cuda::CudaModel;
use baton_engine::{
    Engine, EngineConfig,
    backend::{
        Backend,
        cpu::{CpuBackend, CpuModel, Loading, WeightForm},
        mock::MockBackend,
    },
};
use baton_kernels::cpu::ComputePool;
use baton_model::{Model, ModelConfig, ModelText};

#[cfg(feature = "cuda")]
use crate::config::Load;
use crate::{
    config::{BackendKind, ClusterConfig, EngineSection, Weights},
    terminal::LoadingBar,
};

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
    Cpu {
        model: Arc<CpuModel>,
        pool: Arc<ComputePool>,
        config: Box<ModelConfig>,
    },
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Card>),
    Mock,
}

/// Tokens of a page in the machine's memory, unless configured.
const PAGE_TOKENS: u32 = 16;

/// Memory of a node's pool in the machine's memory, unless configured.
const KV_MEMORY_MIB: usize = 256;

// === impl Compute ===

impl Compute {
    /// Loads what `config` names, and fetches it first where that is needed. Blocks.
    ///
    /// # Errors
    /// When the model cannot be had or its files are broken.
    pub fn load(config: &ClusterConfig) -> Result<Self> {
        config.make_model_available()?;
        match config.engine.backend {
            BackendKind::Mock => Self::mock(config),
            BackendKind::Cpu => Self::cpu(config),
            BackendKind::Cuda => Self::cuda(config),
        }
    }

    /// A backend of its own over the shared weights.
    ///
    /// # Errors
    /// When its device has no room for what it needs besides pages.
    pub fn backend(&self, settings: &EngineSection) -> Result<Box<dyn Backend>> {
        let page_tokens = if settings.page_tokens == 0 { PAGE_TOKENS } else { settings.page_tokens };
        Ok(match &self.source {
            Source::Cpu { model, pool, .. } => {
                Box::new(CpuBackend::new(Arc::clone(model), Arc::clone(pool), page_tokens))
            }
            #[cfg(feature = "cuda")]
            Source::Cuda(card) => Box::new(card.backend(settings)?),
            Source::Mock => {
                let mock = MockBackend::new(settings.mock.clone(), page_tokens);
                let eos = self.text.eos_tokens().first().copied().unwrap_or_default();
                Box::new(mock.speaking(self.text.vocab_tokens(), eos))
            }
        })
    }

    /// The model's shape; none for the mock.
    pub fn model_config(&self) -> Option<&ModelConfig> {
        match &self.source {
            Source::Cpu { config, .. } => Some(config),
            #[cfg(feature = "cuda")]
            Source::Cuda(card) => Some(card.config()),
            Source::Mock => None,
        }
    }

    /// An engine of its own for one node.
    ///
    /// # Errors
    /// When its device has no memory for the pages.
    pub fn engine(&self, settings: &EngineSection) -> Result<Engine> {
        let backend = self.backend(settings)?;
        let mut engine = EngineConfig::new(self.pages(settings, &*backend), self.context_tokens);
        engine.eos_tokens = self.text.eos_tokens().to_vec();
        engine.text = Some(Arc::clone(&self.text));
        engine.zeroes_pages = settings.zero_pages;
        engine.scheduler = settings.scheduler.clone();
        Ok(Engine::new(backend, engine)?)
    }

    fn cpu(config: &ClusterConfig) -> Result<Self> {
        let path = baton_model::resolve(&config.model, &baton_model::default_cache())?;
        let EngineSection { precision, weights, threads, .. } = config.engine;
        let threads = NonZero::new(threads).map_or_else(available_parallelism, Ok)?;
        let pool = precision.pool(threads.get())?;
        let name = served_name(&config.model);
        let bar = LoadingBar::start(&name);
        let progress = |done, total| bar.show(done, total);
        let form = match weights {
            Weights::Auto | Weights::Fp8 => WeightForm::File,
            Weights::Bf16 => WeightForm::Bf16,
            Weights::Int4 => WeightForm::Int4,
        };
        let how = Loading { precision, weights: form, progress: Some(&progress) };
        let (model, packed) = pool.run(|| check_and_pack(&path, how))?;
        bar.finish(packed.bytes());
        Ok(Self {
            name,
            fingerprint: format!("{}-{precision:?}-{weights:?}", model.fingerprint),
            context_tokens: model.config.context_tokens,
            text: model.text,
            source: Source::Cpu { model: packed, pool, config: Box::new(model.config) },
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda(config: &ClusterConfig) -> Result<Self> {
        if config.engine.load == Load::Random {
            return Self::random(config);
        }
        let EngineSection { weights, dtype, kv_dtype, .. } = config.engine;
        let path = baton_model::resolve(&config.model, &baton_model::default_cache())?;
        let model = baton_model::load(&path).with_context(|| format!("cannot load {}", path.display()))?;
        let card = cuda::Card::load(config, |gpu, form| CudaModel::load(&model, gpu, form))?;
        Ok(Self {
            name: served_name(&config.model),
            fingerprint: format!("{}-cuda-{dtype:?}-{weights:?}-{kv_dtype:?}", model.fingerprint),
            context_tokens: model.config.context_tokens,
            source: Source::Cuda(Box::new(card)),
            text: model.text,
        })
    }

    /// Weights and a text that mean nothing, of a shape.
    #[cfg(feature = "cuda")]
    fn random(config: &ClusterConfig) -> Result<Self> {
        let path = crate::bench::shape_path(Path::new(&config.model));
        let shape = baton_model::shape(&path).with_context(|| format!("no shape in {}", path.display()))?;
        let card = cuda::Card::load(config, |gpu, form| CudaModel::random(&shape, gpu, form))?;
        let text = Arc::new(ModelText::made_up(shape.vocab, shape.context_tokens));
        let name = served_name(&config.model);
        let ModelConfig { layers, hidden, intermediate, vocab, .. } = shape;
        let EngineSection { weights, dtype, kv_dtype, .. } = config.engine;
        let sizes = format!("{layers}-{hidden}-{intermediate}-{vocab}");
        Ok(Self {
            fingerprint: format!("random-{name}-{sizes}-cuda-{dtype:?}-{weights:?}-{kv_dtype:?}"),
            name,
            context_tokens: shape.context_tokens,
            source: Source::Cuda(Box::new(card)),
            text,
        })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: &ClusterConfig) -> Result<Self> {
        anyhow::bail!("engine.backend=cuda needs a baton built with `--features cuda`, which this one is not")
    }

    /// Pages of a node's pool: as configured, or what fits into its memory.
    fn pages(&self, settings: &EngineSection, backend: &dyn Backend) -> usize {
        if settings.pages > 0 {
            return settings.pages;
        }
        #[cfg(feature = "cuda")]
        if let (Source::Cuda(card), 0) = (&self.source, settings.kv_memory_mib) {
            return card.share_of_pages(backend);
        }
        let shape = backend.kv_shape();
        let mib = if settings.kv_memory_mib == 0 { KV_MEMORY_MIB } else { settings.kv_memory_mib };
        ((mib << 20) / (shape.token_bytes() * shape.page_tokens as usize)).max(1)
    }

    fn mock(config: &ClusterConfig) -> Result<Self> {
        let text = if config.engine.mock.speaks_model {
            let path = baton_model::resolve(&config.model, &baton_model::default_cache())?;
            baton_model::load(&path).with_context(|| format!("cannot load {}", path.display()))?.text
        } else {
            Arc::new(ModelText::mock())
        };
        Ok(Self {
            name: served_name(&config.model),
            fingerprint: format!("mock-{}-{:?}", text.digest(), config.engine.mock),
            context_tokens: text.context_tokens(),
            text,
            source: Source::Mock,
        })
    }
}

/// Reads a model's files twice, to hash and to pack them: each is half of the progress.
fn check_and_pack(path: &Path, how: Loading<'_>) -> Result<(Model, Arc<CpuModel>)> {
    let progress = |done, total| {
        if let Some(progress) = how.progress {
            progress(done, total);
        }
    };
    let model = baton_model::load_with(path, &|done, total| progress(done, 2 * total))
        .with_context(|| format!("cannot load {}", path.display()))?;
    let packing = |done, total| progress(total + done, 2 * total);
    let packed = CpuModel::load(&model, Loading { progress: Some(&packing), ..how })?;
    Ok((model, packed))
}

/// The name that was typed; of a path the model's own name, so that no path of this machine is shown.
fn served_name(model: &str) -> String {
    let path = Path::new(model);
    if path.exists() { baton_model::name_of(path) } else { model.to_owned() }
}

#[cfg(test)]
mod tests;
