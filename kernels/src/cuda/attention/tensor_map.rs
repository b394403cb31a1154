//! How Hopper's copy engine sees a pool.

use crate::cuda::{
    Dtype,
    error::GpuError,
    rope::PoolShape,
    tensor_map::{self, PANEL, TensorMap},
};

/// Tokens of a box: as many as always lie in one page, and at most 64.
pub(super) fn box_tokens(shape: &PoolShape) -> usize {
    let fits = |tokens: &usize| shape.page_tokens.is_multiple_of(*tokens);
    [64, 32].into_iter().find(fits).unwrap_or(16)
}

/// The pool of elements at `address` as `[page, layer][token][K|V, head][element]`, read in boxes of
/// 64 elements of one head of [`box_tokens`] tokens.
pub(super) fn tensor_map(dtype: Dtype, address: u64, shape: &PoolShape) -> Result<TensorMap, GpuError> {
    let row_bytes = 2 * shape.row_halves();
    let sizes = [shape.head_dim, 2 * shape.kv_heads, shape.page_tokens, shape.pages * shape.layers];
    let strides = [2 * shape.head_dim, row_bytes, row_bytes * shape.page_tokens];
    tensor_map::tensor_map(dtype.into(), address, sizes, &strides, [PANEL, 1, box_tokens(shape), 1])
}
