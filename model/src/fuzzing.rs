//! What a fuzzer feeds: each function takes any bytes, must not panic, and
//! checks what must hold of whatever it makes of them. Built for tests and for
//! cargo-fuzz only (`fuzz/`).
//!
//! - [`files`]: a model's files
//! - [`texts`]: tokenizers, templates, and grammars that hold answers to a form

pub mod files;
#[cfg(test)]
mod tests;
pub mod texts;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("chat_template", texts::chat_template),
    ("gguf", files::gguf),
    ("json_schema", texts::json_schema),
    ("lark", texts::lark),
    ("model_directory", files::model_directory),
    ("regex", texts::regex),
    ("safetensors", files::safetensors),
    ("tokenizer", texts::tokenizer),
];
