//! How a token is drawn from a row of logits.

use bytemuck::{Pod, Zeroable};

/// Temperature, top-k, top-p of what that leaves, min-p, in this order. Ties go to the lowest id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Draw {
    /// 0: the likeliest.
    pub temperature: f32,
    /// 0: any.
    pub top_k: u32,
    /// 1: any.
    pub top_p: f32,
    /// 0: any.
    pub min_p: f32,
    /// What decides: the share of all weights, in 2^-64, that comes before the drawn token in order of id.
    pub share: u64,
    /// Fills the record.
    pub unused: u64,
}

// === impl Draw ===

impl Draw {
    /// Words of one in memory.
    pub const WORDS: usize = size_of::<Self>() / 4;

    /// The lowest id of the greatest logit.
    pub const LIKELIEST: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, share: 0, unused: 0 };

    /// As a kernel reads it.
    #[must_use]
    pub fn words(&self) -> &[i32] {
        bytemuck::cast_slice(std::slice::from_ref(self))
    }
}
