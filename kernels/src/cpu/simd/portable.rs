//! Plain Rust, for processors without a special path and as an oracle in tests.

use half::{bf16, f16};

use super::{LANES, Simd};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn map(a: Lanes, b: Lanes, op: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| op(a[i], b[i]))
}

impl Simd for Portable {
    const TILE_ROWS: usize = 2;
    type V = Lanes;
    type Pairs = [Lanes; 2];
    type Whole = [i32; LANES];
    type Quads = [u8; 4 * LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }

    #[inline(always)]
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        map(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn exponent(self, v: Lanes) -> Lanes {
        v.map(|lane| f32::from_bits(lane.to_bits().wrapping_add(127) << 23))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Lanes {
        from.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16))
    }

    #[inline(always)]
    fn store_bf16(self, v: Lanes, to: &mut [bf16; LANES]) {
        *to = v.map(bf16::from_f32);
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> [Lanes; 2] {
        self.load_split(from)
    }

    #[inline(always)]
    fn dot(self, acc: Lanes, a: [bf16; 2], b: [Lanes; 2]) -> Lanes {
        // Products of two bf16 are exact in f32, so this rounds like a fused operation.
        let [even, odd] = a.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16));
        std::array::from_fn(|i| (acc[i] + odd * b[1][i]) + even * b[0][i])
    }

    #[inline(always)]
    fn load_split(self, from: &[bf16; 2 * LANES]) -> [Lanes; 2] {
        [0, 1]
            .map(|odd| std::array::from_fn(|i| f32::from_bits(u32::from(from[2 * i + odd].to_bits()) << 16)))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Lanes {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn nibbles(self, words: &[u32; LANES], index: usize) -> Lanes {
        words.map(|word| (word >> (4 * index) & 15) as f32)
    }

    #[inline(always)]
    fn bytes(self, words: &[u32; LANES], index: usize) -> Lanes {
        words.map(|word| f32::from((word >> (8 * index)) as u8))
    }

    #[inline(always)]
    fn no_whole(self) -> [i32; LANES] {
        [0; LANES]
    }

    #[inline(always)]
    fn load_whole(self, from: &[i32; LANES]) -> [i32; LANES] {
        *from
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> [u8; 4 * LANES] {
        *from
    }

    #[inline(always)]
    fn dot_quads(self, acc: [i32; LANES], a: [i8; 4], b: [u8; 4 * LANES]) -> [i32; LANES] {
        let dot = |lane: usize| -> i32 { (0..4).map(|i| i32::from(a[i]) * i32::from(b[4 * lane + i])).sum() };
        std::array::from_fn(|lane| acc[lane] + dot(lane))
    }

    #[inline(always)]
    fn join(self, high: [i32; LANES], low: [i32; LANES]) -> [i32; LANES] {
        std::array::from_fn(|lane| high[lane] * 16 + low[lane])
    }

    #[inline(always)]
    fn value(self, whole: [i32; LANES], less: i32) -> Lanes {
        whole.map(|whole| (whole - less) as f32)
    }
}
