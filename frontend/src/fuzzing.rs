//! What a fuzzer feeds: each function takes any bytes, must not panic, and
//! checks what must hold of whatever it makes of them. Built for tests and for
//! cargo-fuzz only (`fuzz/`).
//!
//! - [`answers`]: what models say, on its way out
//! - [`bodies`]: what callers ask, in each dialect
//! - [`heads`]: what they say beside it
//! - [`uploads`]: files for batches

pub mod answers;
pub mod bodies;
pub mod heads;
#[cfg(test)]
mod tests;
pub mod uploads;

use crate::error::ApiError;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 14] = [
    ("anthropic", bodies::anthropic),
    ("batch_lines", uploads::batch_lines),
    ("call_parts", answers::call_parts),
    ("chat", bodies::chat),
    ("completions", bodies::completions),
    ("embeddings", bodies::embeddings),
    ("events", answers::events),
    ("headers", heads::headers),
    ("multipart", uploads::multipart),
    ("responses", bodies::responses),
    ("sglang", bodies::sglang),
    ("stop_strings", answers::stop_strings),
    ("tgi", bodies::tgi),
    ("tokenize", bodies::tokenize),
];

/// Whatever a caller sends is the caller's fault, and can be told.
fn refused(error: &ApiError) {
    assert!(error.status().is_client_error(), "{error}");
    serde_json::to_vec(&error.body()).expect("a refusal is JSON");
}
