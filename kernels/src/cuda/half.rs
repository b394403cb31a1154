//! Numbers of sixteen bits in a card's memory.
#![expect(unsafe_code, reason = "marks a number that may lie in device memory")]

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// What a [`Gpu`](super::Gpu) computes in, and its memory holds; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: the range of f32, eight significant bits.
    #[default]
    Bf16,
    /// IEEE half precision: up to 65504, eleven significant bits.
    F16,
}

/// Sixteen bits that mean a number in the [`Dtype`] of the card that they are for or from.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Half(u16);

// === impl Dtype ===

impl Dtype {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bf16, Self::F16];

    /// `value` rounded to the nearest; infinite where it is out of range.
    #[must_use]
    pub fn round(self, value: f32) -> Half {
        Half(match self {
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        })
    }

    /// The number that `half` is.
    #[must_use]
    pub fn value(self, half: Half) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(half.0).to_f32(),
            Self::F16 => f16::from_bits(half.0).to_f32(),
        }
    }
}

// === impl Half ===

// SAFETY: two bytes without padding, passed as they are.
unsafe impl DeviceRepr for Half {}
// SAFETY: zero in either dtype.
unsafe impl ValidAsZeroBits for Half {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_dtype() {
        for (dtype, step) in [(Dtype::Bf16, 1.0 / 128.0), (Dtype::F16, 1.0 / 1024.0)] {
            assert_eq!(dtype.value(dtype.round(1.0 + 0.6 * step)), 1.0 + step);
            assert_eq!(dtype.value(Half::default()), 0.0);
        }
        assert!(Dtype::F16.value(Dtype::F16.round(65_520.0)).is_infinite());
        assert_eq!(Dtype::F16.value(Dtype::F16.round(65_519.0)), 65_504.0);
    }
}
