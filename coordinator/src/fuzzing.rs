//! What a fuzzer feeds. Built for tests and for cargo-fuzz only (`fuzz/`).

pub use crate::prefix::model::prefix_index;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("prefix_index", prefix_index)];

#[cfg(test)]
mod tests;
