//! Section `[engine]`.

use std::time::Duration;

use anyhow::{Result, ensure};
use baton_engine::backend::cpu::Precision;
use serde::Deserialize;

/// The engine's own settings and the choice of what computes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// `cpu`, `cuda` or `mock`.
    pub backend: BackendKind,
    /// Where weights come from.
    pub load: Load,
    /// Number of the card that the CUDA backend computes on.
    pub device: usize,
    /// Arithmetic of the CPU backend.
    pub precision: Precision,
    /// In what form weights are held.
    pub weights: Weights,
    /// What a card computes in, and holds weights and cached rows in.
    pub dtype: Dtype,
    /// What cached rows are held in.
    pub kv_dtype: KvDtype,
    /// Whether a card computes the same bits for a request alone, in any batch, split and local:
    /// slower, on Hopper alone. Other backends always do.
    pub deterministic: bool,
    /// Compute threads of the process; 0 means one a core.
    pub threads: usize,
    /// Tokens of a page; 0 means 16, or 64 on a card, which has no others.
    pub page_tokens: u32,
    /// Pages of each node's pool; 0 sizes it by `kv_memory_mib`.
    pub pages: usize,
    /// Memory of each node's pool when `pages` is 0; 0 means 256, or on a card
    /// the node's share of what the weights leave.
    pub kv_memory_mib: usize,
    /// Zeroes pages when another request gets them. Without, what a request left in a page is there until
    /// it is written over, and nothing reads it before.
    pub zero_pages: bool,
    /// A step that takes so long never ends: the process ends, and others do its work. 0: no limit.
    /// Absent: a minute on a card, and ten elsewhere, since a large model on few cores takes its time.
    pub step_limit_ms: Option<u64>,
    /// Scheduling.
    pub scheduler: baton_engine::SchedulerConfig,
    /// The mock backend's shape and times.
    pub mock: baton_engine::backend::mock::MockConfig,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The CPU kernels.
    #[default]
    Cpu,
    /// A card of NVIDIA's.
    Cuda,
    /// No model: tokens are a pure function of the prompt. For tests.
    Mock,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// The model's files.
    #[default]
    Files,
    /// Made on the card, and mean nothing: `model` is a shape, a directory with config.json or
    /// a name in shapes/. For benches.
    Random,
}

/// A form of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// On the CPU: as they are where the file has them in Q4_0, Q4_1 or Q8_0, else in bf16. On a
    /// card: in `dtype`.
    #[default]
    Auto,
    /// All in bf16, or on a card in `dtype`.
    Bf16,
    /// On the CPU: layers in four bits, embeddings in eight.
    Int4,
    /// On a card: layers in e4m3 with a scale for each output.
    Fp8,
}

/// A number of sixteen bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16: the range of f32.
    #[default]
    #[serde(alias = "bfloat16")]
    #[value(alias = "bfloat16")]
    Bf16,
    /// IEEE half precision: three more significant bits, no more than 65504.
    #[serde(alias = "float16")]
    #[value(alias = "float16")]
    Fp16,
}

/// What cached rows are held in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// As the backend computes.
    #[default]
    Auto,
    /// On a card: e4m3 with a scale for each head's key and value of a token.
    Fp8,
}

// === impl EngineSection ===

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            backend: BackendKind::Cpu,
            load: Load::Files,
            device: 0,
            precision: Precision::Fast,
            weights: Weights::default(),
            dtype: Dtype::Bf16,
            kv_dtype: KvDtype::Auto,
            deterministic: false,
            threads: 0,
            page_tokens: 0,
            pages: 0,
            kv_memory_mib: 0,
            zero_pages: false,
            step_limit_ms: None,
            scheduler: Default::default(),
            mock: Default::default(),
        }
    }
}

impl EngineSection {
    /// After which a step counts as one that never ends; zero: never.
    pub fn step_limit(&self) -> Duration {
        let usual = if self.backend == BackendKind::Cuda { 60_000 } else { 600_000 };
        Duration::from_millis(self.step_limit_ms.unwrap_or(usual))
    }

    pub(super) fn validate(&self) -> Result<()> {
        ensure!(self.page_tokens <= 1024, "engine.page_tokens must be at most 1024");
        ensure!(
            self.backend != BackendKind::Cuda || matches!(self.page_tokens, 0 | 64),
            "engine.page_tokens must be 64 on the cuda backend"
        );
        for (name, is_set, owner) in [
            ("precision", self.precision != Precision::default(), BackendKind::Cpu),
            ("weights=int4", self.weights == Weights::Int4, BackendKind::Cpu),
            ("weights=fp8", self.weights == Weights::Fp8, BackendKind::Cuda),
            ("dtype=fp16", self.dtype == Dtype::Fp16, BackendKind::Cuda),
            ("kv_dtype=fp8", self.kv_dtype == KvDtype::Fp8, BackendKind::Cuda),
            ("threads", self.threads != 0, BackendKind::Cpu),
            ("device", self.device != 0, BackendKind::Cuda),
            ("load", self.load != Load::default(), BackendKind::Cuda),
        ] {
            ensure!(
                !is_set || self.backend == owner,
                "engine.{name} is a setting of engine.backend={}, and this is {}",
                owner.as_str(),
                self.backend.as_str()
            );
        }
        Ok(())
    }
}

// === impl BackendKind ===

impl BackendKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Mock => "mock",
        }
    }
}
