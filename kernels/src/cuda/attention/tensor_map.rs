//! How Hopper's copy engine sees a pool.
#![expect(unsafe_code, reason = "the driver encodes the map")]

use cudarc::driver::sys;

use crate::cuda::{
    error::{GpuError, Named},
    rope::PoolShape,
};

/// Elements of a row of a box: what one swizzled line of shared memory holds.
const PANEL: u32 = 64;

/// Tokens of a box: as many as always lie in one page, and at most 64.
pub(super) fn box_tokens(shape: &PoolShape) -> usize {
    let fits = |tokens: &usize| shape.page_tokens.is_multiple_of(*tokens);
    [64, 32].into_iter().find(fits).unwrap_or(16)
}

/// The pool at `address` as `[page, layer][token][K|V, head][element]`, read in boxes of
/// 64 elements of one head of [`box_tokens`] tokens.
pub(super) fn tensor_map(address: u64, shape: &PoolShape) -> Result<[u64; 16], GpuError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let row_bytes = 2 * shape.row_elements() as u64;
    let sizes = [shape.head_dim, 2 * shape.kv_heads, shape.page_tokens, shape.pages * shape.layers];
    let sizes = sizes.map(|size| size as u64);
    let strides = [2 * shape.head_dim as u64, row_bytes, row_bytes * shape.page_tokens as u64];
    let boxes = [PANEL, 1, box_tokens(shape) as u32, 1];
    let steps = [1; 4];
    // SAFETY: the arrays live for the call and have the sizes that rank 4 needs; the
    // driver checks what they say.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            4,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .named("cuTensorMapEncodeTiled")?;
    Ok(map.opaque)
}
