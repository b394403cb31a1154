//! Machines from data sheets: a roofline of a card's arithmetic and bandwidth over a model's shape.
//!
//! | card | dense bf16 TFLOP/s | memory TB/s | GB | to other cards GB/s | source |
//! |---|--:|--:|--:|--:|---|
//! | H100 | 989.4 | 3.35 | 80 | 450 | NVIDIA H100 Tensor Core GPU data sheet, SXM (half of 1,979 with sparsity; NVLink 900 both ways) |
//! | H200 | 989.4 | 4.8 | 141 | 450 | NVIDIA H200 Tensor Core GPU data sheet, SXM (NVLink 900 both ways) |
//! | A100 | 312 | 2.039 | 80 | 300 | NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM (NVLink 600 both ways) |
//! | L40S | 362.05 | 0.864 | 48 | 32 | NVIDIA L40S data sheet (half of 733 with sparsity; PCIe Gen4 x16, 64 both ways) |
//! | B200 | 2,250 | 8 | 180 | 900 | NVIDIA HGX B200 data sheet, an eighth (half of 36 PFLOP/s with sparsity; 64 TB/s; 1.44 TB; NVLink 1,800 both ways) |
//!
//! No engine reaches the roof. The shares below make the rows of BENCHMARKS.md for an H100 and the
//! 8B shape come out within a tenth; that they hold for other cards is believed, not measured, and
//! a measured run (`--fit`) is better than any of them. Of a model spread over several cards
//! nothing was measured at all: the engine does not do it, and only plans ask.

use baton_protocol::{KvDtype, KvShape, StepCost};
use serde::Deserialize;

use super::{Limits, Link, Machine};

/// A card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// As people call it.
    pub name: &'static str,
    /// Dense bf16 operations a second.
    pub flops: f64,
    /// Bytes of memory read a second.
    pub bandwidth: f64,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes a second to another card of its host, one way.
    pub peers: f64,
}

/// The part of a model's `config.json` that decides on time and memory.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ModelShape {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(alias = "num_local_experts", alias = "n_routed_experts")]
    num_experts: Option<usize>,
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// Not a card of the table.
    #[error("unknown card {0:?}, expected one of h100, h200, a100, l40s, b200")]
    Gpu(String),
    /// Not a shape.
    #[error("the model's config.json cannot be read")]
    Shape(#[from] serde_json::Error),
    /// Only some of its weights work for a token.
    #[error("a model with experts has no preset: how many weights a step reads depends on its tokens")]
    Experts,
    /// Heads cannot be shared out evenly.
    #[error("{cards} cards cannot share {heads} KV heads evenly")]
    Uneven {
        /// Cards of a node.
        cards: usize,
        /// Heads of the model's keys and values.
        heads: usize,
    },
    /// The model does not fit, and nodes hold whole models.
    #[error(
        "weights of {weights_gb:.0} GB leave no room for KV on {cards} × {gpu} of {memory_gb:.0} GB; \
         nodes hold a whole model on one card, and `baton plan --tensor-parallel` says what more would take"
    )]
    TooLarge {
        /// Cards of a node.
        cards: usize,
        /// The card.
        gpu: &'static str,
        /// Its memory.
        memory_gb: f64,
        /// The model's weights in bf16.
        weights_gb: f64,
    },
}

/// See the module's table.
pub const GPUS: [Gpu; 5] = [
    Gpu { name: "H100", flops: 989.4e12, bandwidth: 3.35e12, memory: 80e9, peers: 450e9 },
    Gpu { name: "H200", flops: 989.4e12, bandwidth: 4.8e12, memory: 141e9, peers: 450e9 },
    Gpu { name: "A100", flops: 312e12, bandwidth: 2.039e12, memory: 80e9, peers: 300e9 },
    Gpu { name: "L40S", flops: 362.05e12, bandwidth: 0.864e12, memory: 48e9, peers: 32e9 },
    Gpu { name: "B200", flops: 2250e12, bandwidth: 8e12, memory: 180e9, peers: 900e9 },
];

/// Share of its arithmetic that products of prompts get, and attention of prompts.
const COMPUTE: f64 = 0.65;
const ATTENTION: f64 = 0.5;
/// Share of its bandwidth that steps of answers get.
const READ: f64 = 0.9;
/// Share of the arithmetic of answers that does not hide behind what they read.
const SHOWN: f64 = 0.6;
/// Seconds of a step beside what the card does: scheduling, sampling, launches.
const STEP: f64 = 5e-4;
/// Sums over the cards of a node in each layer: after attention, and after the feed-forward part.
const SUMS: f64 = 2.0;
/// Seconds until a sum begins to travel, and share of the way's bandwidth that sums get.
const SUM_BEGINS: f64 = 1e-5;
const SUM: f64 = 0.7;
/// Share of memory that is used, and bytes of it for activations.
const USED: f64 = 0.9;
const ACTIVATIONS: f64 = 2e9;
/// Of weights and KV in bf16.
const BYTES: f64 = 2.0;
const PAGE_TOKENS: u32 = 64;

// === impl Gpu ===

impl Gpu {
    /// By its name, in any case.
    ///
    /// # Errors
    /// When it is not in the table.
    pub fn named(name: &str) -> Result<Self, PresetError> {
        let found = GPUS.into_iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| PresetError::Gpu(name.to_owned()))
    }

    /// This card with this model, whole and in bf16.
    ///
    /// # Errors
    /// When the model does not fit, or has experts.
    pub fn machine(&self, model: &ModelShape, limits: Limits, link: Link) -> Result<Machine, PresetError> {
        self.machine_of(1, model, limits, link)
    }

    /// A node of so many of these cards, each with its part of every layer's heads and columns.
    ///
    /// # Errors
    /// When the model does not fit, cannot be shared out, or has experts.
    pub fn machine_of(
        &self,
        cards: usize,
        model: &ModelShape,
        limits: Limits,
        link: Link,
    ) -> Result<Machine, PresetError> {
        if model.num_experts.is_some_and(|experts| experts > 1) {
            return Err(PresetError::Experts);
        }
        let kv = model.kv();
        let heads = kv.kv_heads as usize;
        if !heads.is_multiple_of(cards) {
            return Err(PresetError::Uneven { cards, heads });
        }
        let all = cards as f64;
        let weights = BYTES * (model.layers() + model.embeddings());
        let room = all * (USED * self.memory - ACTIVATIONS) - weights;
        let page_bytes = (kv.token_bytes() * kv.page_tokens as usize) as f64;
        if room < page_bytes {
            let (memory_gb, weights_gb) = (self.memory / 1e9, weights / 1e9);
            return Err(PresetError::TooLarge { cards, gpu: self.name, memory_gb, weights_gb });
        }
        let pages = if limits.pages == 0 { (room / page_bytes) as usize } else { limits.pages };
        let read = |bytes: f64| bytes / (READ * all * self.bandwidth);
        let flops = all * self.flops;
        let (sums, summed) = self.sums(cards, model);
        let prefill = StepCost {
            base: STEP + sums,
            unit: 2.0 * model.layers() / (COMPUTE * flops) + summed,
            context: model.attention() / (ATTENTION * flops),
        };
        let decode = StepCost {
            base: STEP + sums + read(BYTES * (model.layers() + model.head())),
            unit: SHOWN * 2.0 * (model.layers() + model.head()) / flops + summed,
            context: read(kv.token_bytes() as f64),
        };
        Ok(Machine { kv, prefill, decode, limits: Limits { pages, ..limits }, link })
    }
}

impl Gpu {
    /// Seconds of a step, and of each of its tokens, in which cards sum up what each has made, in a ring.
    fn sums(&self, cards: usize, model: &ModelShape) -> (f64, f64) {
        if cards == 1 {
            return (0.0, 0.0);
        }
        let sums = SUMS * model.num_hidden_layers as f64;
        let around = 2.0 * (cards - 1) as f64 / cards as f64;
        let bytes = around * BYTES * model.hidden_size as f64;
        (sums * SUM_BEGINS, sums * bytes / (SUM * self.peers))
    }
}

// === impl ModelShape ===

impl ModelShape {
    /// From a `config.json`.
    ///
    /// # Errors
    /// When a size is missing.
    pub fn parse(config: &str) -> Result<Self, PresetError> {
        Ok(serde_json::from_str(config)?)
    }

    /// Shape of its KV in bf16.
    pub fn kv(&self) -> KvShape {
        KvShape {
            layers: self.num_hidden_layers as u32,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads) as u32,
            head_dim: self.head_dim() as u32,
            dtype: KvDtype::Bf16,
            page_tokens: PAGE_TOKENS,
        }
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Weights of its layers.
    fn layers(&self) -> f64 {
        let heads = self.num_attention_heads;
        let kv = self.num_key_value_heads.unwrap_or(heads);
        let attention = self.hidden_size * self.head_dim() * (2 * heads + 2 * kv);
        let mlp = 3 * self.hidden_size * self.intermediate_size;
        (self.num_hidden_layers * (attention + mlp)) as f64
    }

    /// Weights of the output projection.
    fn head(&self) -> f64 {
        (self.vocab_size * self.hidden_size) as f64
    }

    /// Weights of embeddings and output projection.
    fn embeddings(&self) -> f64 {
        if self.tie_word_embeddings { self.head() } else { 2.0 * self.head() }
    }

    /// Operations of a token that attends to another.
    fn attention(&self) -> f64 {
        (4 * self.num_attention_heads * self.head_dim() * self.num_hidden_layers) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: &str = include_str!("../../../shapes/llama-3.1-8b/config.json");

    #[test]
    fn an_8b_model_is_as_large_and_as_slow_as_its_shape_says() {
        let model = ModelShape::parse(LLAMA_8B).unwrap();
        let weights = model.layers() + model.embeddings();
        assert!((weights / 8.03e9 - 1.0).abs() < 0.01, "{weights}");
        let machine =
            Gpu::named("h100").unwrap().machine(&model, Limits::default(), Link::default()).unwrap();
        assert_eq!(machine.kv.token_bytes(), 131_072);
        // Rows of BENCHMARKS.md, in milliseconds.
        for (answers, measured) in [(1.0, 5.72), (64.0, 9.07), (256.0, 19.53)] {
            let told = 1e3 * machine.step((0.0, 0.0), (answers, answers * 1024.0));
            assert!((told / measured - 1.0f64).abs() < 0.1, "{answers}: {told} ms");
        }
        for (tokens, measured) in [(512, 11.41), (2048, 47.29), (8192, 212.1)] {
            let told = 1e3 * machine.prompt(tokens, 0);
            assert!((told / measured - 1.0f64).abs() < 0.1, "{tokens}: {told} ms");
        }
        assert!((5_000..7_000).contains(&machine.limits.pages), "{machine:?}");
    }

    #[test]
    fn more_cards_are_faster_but_not_by_as_much_and_hold_more() {
        let model = ModelShape::parse(LLAMA_8B).unwrap();
        let of = |gpu: usize, cards| GPUS[gpu].machine_of(cards, &model, Limits::default(), Link::default());
        for gpu in 0..GPUS.len() {
            for cards in [1, 2, 4] {
                let (one, two) = (of(gpu, cards).unwrap(), of(gpu, 2 * cards).unwrap());
                let ratio = one.step((0.0, 0.0), (64.0, 65_536.0)) / two.step((0.0, 0.0), (64.0, 65_536.0));
                assert!((0.8..1.9).contains(&ratio), "{gpu} {cards}: {ratio}");
                assert!(two.limits.pages > 2 * one.limits.pages && two.kv == one.kv);
            }
        }
        assert!(matches!(of(0, 3), Err(PresetError::Uneven { heads: 8, .. })));
        assert!(of(0, 16).is_err() && of(0, 0).is_err());
    }

    #[test]
    fn what_does_not_fit_and_what_is_unknown_is_refused_by_name() {
        assert!(Gpu::named("h1000").unwrap_err().to_string().contains("h100, h200"));
        let config = LLAMA_8B.replace("\"num_hidden_layers\": 32", "\"num_hidden_layers\": 320");
        let large = ModelShape::parse(&config).unwrap();
        let error = GPUS[0].machine(&large, Limits::default(), Link::default()).unwrap_err();
        assert!(error.to_string().contains("--tensor-parallel"), "{error}");
        let experts = LLAMA_8B.replace("\"mlp_bias\"", "\"num_local_experts\": 8, \"mlp_bias\"");
        let experts = ModelShape::parse(&experts).unwrap();
        assert!(matches!(
            GPUS[0].machine(&experts, Limits::default(), Link::default()),
            Err(PresetError::Experts)
        ));
    }
}
