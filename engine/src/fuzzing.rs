//! What a fuzzer feeds. Built for tests and for cargo-fuzz only (`fuzz/`).

pub use crate::kv::page_pool;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("page_pool", page_pool)];

#[cfg(test)]
mod tests;
