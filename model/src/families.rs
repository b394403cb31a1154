//! Families of decoders. All of them are one decoder; a row says how a family differs.
//!
//! - this file: the rows
//! - [`outline`]: what a file says of its model, and the configuration that follows
//! - [`rope`]: rotary embeddings and the ways to stretch them
//! - [`tensors`]: names and shapes of tensors in both formats
//!
//! A new family is a row here, and an arm in one of these files if it does
//! something that no other family does.

mod outline;
mod rope;
mod tensors;

pub use outline::{Outline, WindowedLayers, Windows};
pub use rope::{Rope, Scaling};
pub use tensors::{GGUF_OUTPUT, arrange, hugging_face_name};

use crate::{
    config::{Activation, Norms, QkNorm},
    error::FormatError,
};

/// What all models of a family have in common.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub hugging_face: &'static str,
    /// `general.architecture` of a GGUF file. Mistral's files say `llama`.
    pub gguf: Option<&'static str>,
    pub norms: Norms,
    pub qk_norm: QkNorm,
    pub activation: Activation,
    pub qkv_bias: bool,
    /// Safetensors hold norm weights less 1. GGUF files hold them as they are used.
    pub norms_less_one: bool,
    /// Queries, keys and values are one tensor; gate and up are another.
    pub fused: bool,
    /// Embeddings are multiplied by the square root of the hidden size.
    pub scales_embedding: bool,
    /// GGUF files order the rows of queries and keys pair by pair.
    pub interleaved_gguf: bool,
    /// Layers that have a window, if the file gives one.
    pub windowed: Windowed,
    /// Base of the rotary embedding of layers with a window, if they have their own.
    pub local_theta: Option<f32>,
    /// Every n-th layer does not know positions.
    pub blind_interval: Option<usize>,
    /// Unless the file says something else.
    pub theta: f32,
    /// For GGUF files without a chat template. Those of tuned models have one; a model that is
    /// not tuned for chat answers questions that are put as text has them.
    pub chat_template: Option<&'static str>,
    /// Whether the output projection is the embedding unless `config.json` says something else.
    pub tied: bool,
}

/// Chat as plain text, for models that are not tuned for it.
const PLAIN_TEMPLATE: &str = include_str!("families/plain.jinja");

/// Where such a model goes on with a question of its own: the end of its answer.
const PLAIN_ENDS: [&str; 2] = ["\n\nQuestion:", "\nQuestion:"];

/// Which layers have a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windowed {
    None,
    All,
    /// From a layer on that the file names, and only if it says so.
    Late,
    /// All but every n-th.
    AllBut(usize),
}

/// The plainest family; the others are told by what differs.
const LLAMA: Family = Family {
    hugging_face: "llama",
    gguf: Some("llama"),
    norms: Norms::Before,
    qk_norm: QkNorm::None,
    activation: Activation::Silu,
    qkv_bias: false,
    norms_less_one: false,
    fused: false,
    scales_embedding: false,
    interleaved_gguf: true,
    windowed: Windowed::All,
    local_theta: None,
    blind_interval: None,
    theta: 10_000.0,
    chat_template: None,
    tied: false,
};

const GEMMA2: Family = Family {
    hugging_face: "gemma2",
    gguf: Some("gemma2"),
    norms: Norms::Around,
    activation: Activation::GeluTanh,
    norms_less_one: true,
    scales_embedding: true,
    interleaved_gguf: false,
    windowed: Windowed::AllBut(2),
    chat_template: Some(PLAIN_TEMPLATE),
    tied: true,
    ..LLAMA
};

const QWEN2: Family = Family {
    hugging_face: "qwen2",
    gguf: Some("qwen2"),
    qkv_bias: true,
    interleaved_gguf: false,
    windowed: Windowed::Late,
    ..LLAMA
};

static FAMILIES: [Family; 9] = [
    LLAMA,
    Family { hugging_face: "mistral", gguf: None, ..LLAMA },
    QWEN2,
    Family { hugging_face: "qwen3", gguf: Some("qwen3"), qk_norm: QkNorm::Head, qkv_bias: false, ..QWEN2 },
    GEMMA2,
    Family {
        hugging_face: "gemma3_text",
        gguf: Some("gemma3"),
        qk_norm: QkNorm::Head,
        windowed: Windowed::AllBut(6),
        local_theta: Some(10_000.0),
        theta: 1_000_000.0,
        ..GEMMA2
    },
    Family { hugging_face: "phi3", gguf: Some("phi3"), fused: true, interleaved_gguf: false, ..LLAMA },
    Family {
        hugging_face: "smollm3",
        gguf: Some("smollm3"),
        windowed: Windowed::None,
        blind_interval: Some(4),
        theta: 2_000_000.0,
        tied: true,
        ..LLAMA
    },
    Family {
        hugging_face: "olmo2",
        gguf: Some("olmo2"),
        norms: Norms::After,
        qk_norm: QkNorm::Row,
        interleaved_gguf: false,
        windowed: Windowed::None,
        ..LLAMA
    },
];

/// Texts that end an answer in a chat template; where a model has tokens for it there are none.
pub fn chat_ends(template: &str) -> &'static [&'static str] {
    if template == PLAIN_TEMPLATE { &PLAIN_ENDS } else { &[] }
}

// === impl Family ===

impl Family {
    /// The family with this `model_type`.
    pub fn of_hugging_face(name: &str) -> Result<&'static Self, FormatError> {
        const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, smollm3, olmo2";
        Self::find(name, SUPPORTED, |family| Some(family.hugging_face))
    }

    /// The family with this `general.architecture`.
    pub fn of_gguf(name: &str) -> Result<&'static Self, FormatError> {
        const SUPPORTED: &str = "llama, qwen2, qwen3, gemma2, gemma3, phi3, smollm3, olmo2";
        Self::find(name, SUPPORTED, |family| family.gguf)
    }

    fn find(
        name: &str,
        supported: &'static str,
        key: fn(&Self) -> Option<&'static str>,
    ) -> Result<&'static Self, FormatError> {
        let found = name.to_owned();
        let unknown = FormatError::Unsupported { what: "architecture", found, supported };
        FAMILIES.iter().find(|family| key(family) == Some(name)).ok_or(unknown)
    }
}

#[cfg(test)]
mod tests;
