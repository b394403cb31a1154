//! Rows of the KV cache as elements.

use baton_kernels::cpu::Element;
use half::bf16;

use crate::kv::{PageRead, PageWrite};

/// An element that the KV cache can hold.
pub(super) trait Cached: Element {
    /// `[token][K|V][kv_head][head_dim]`
    fn read<'a>(page: &'a PageRead<'_>) -> &'a [Self];
    /// `[token][K|V][kv_head][head_dim]`
    fn write<'a>(page: &'a mut PageWrite<'_>) -> &'a mut [Self];
}

impl Cached for bf16 {
    fn read<'a>(page: &'a PageRead<'_>) -> &'a [Self] {
        page.bf16()
    }

    fn write<'a>(page: &'a mut PageWrite<'_>) -> &'a mut [Self] {
        page.bf16()
    }
}

impl Cached for f32 {
    fn read<'a>(page: &'a PageRead<'_>) -> &'a [Self] {
        page.f32()
    }

    fn write<'a>(page: &'a mut PageWrite<'_>) -> &'a mut [Self] {
        page.f32()
    }
}
