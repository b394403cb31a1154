//! Matrices as Hopper's copy engine sees them.
#![expect(unsafe_code, reason = "the driver encodes the map")]

use cudarc::driver::sys;

use super::{
    Dtype,
    error::{GpuError, Named},
};

/// Elements of sixteen bits of a row of a box: what one swizzled line of shared memory holds.
pub(super) const PANEL: usize = 64;

/// What an array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Bf16,
    F16,
    /// Bytes, to the copy engine.
    E4m3,
}

/// A `CUtensorMap`, as a kernel's parameter.
pub(super) type TensorMap = [u64; 16];

/// The array at `address`, innermost size first, of which `boxes` of elements are read,
/// 128 bytes wide; `strides` are bytes, from the second size on. What lies
/// outside reads as zeros.
pub(super) fn tensor_map<const RANK: usize>(
    element: Element,
    address: u64,
    sizes: [usize; RANK],
    strides: &[usize],
    boxes: [usize; RANK],
) -> Result<TensorMap, GpuError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (sizes, boxes, steps) = (sizes.map(|size| size as u64), boxes.map(|size| size as u32), [1; RANK]);
    let kind = match element {
        Element::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        Element::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Element::E4m3 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let strides: Vec<u64> = strides.iter().map(|stride| *stride as u64).collect();
    debug_assert_eq!(strides.len() + 1, RANK);
    // SAFETY: the arrays live for the call and have the sizes that the rank needs; the
    // driver checks what they say.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            kind,
            RANK as u32,
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

// === impl Element ===

impl Element {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::E4m3 => 1,
        }
    }

    /// As [`PANEL`], of this element.
    pub(super) const fn panel(self) -> usize {
        2 * PANEL / self.bytes()
    }
}

impl From<Dtype> for Element {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}
