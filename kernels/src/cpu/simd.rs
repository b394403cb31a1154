//! Instruction sets behind one trait: vectors of sixteen f32 lanes.
//!
//! A value of a type that implements [`Simd`] proves that the processor has
//! its instructions, so the methods are safe. [`Isa::run`] is the one place
//! that makes such values and enters code compiled for them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod portable;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Instructions to compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// As the next, and tile registers for products of matrices.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 with dot products of bf16 and of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Plain Rust: what the compiler makes of it.
    Portable,
}

/// Code that is written once and compiled for every instruction set.
/// Implementations mark `run` as `#[inline(always)]`: only then is its body
/// compiled for the instructions of `S`.
pub trait Work {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Sixteen lanes of f32. All methods round like IEEE 754 and give the same bits everywhere.
pub trait Simd: Copy {
    /// Rows of an accumulator tile of 32 columns that fit into the registers.
    const TILE_ROWS: usize;
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen pairs of bf16, in the form that `dot` wants.
    type Pairs: Copy;
    /// Sixteen whole numbers of 32 bits.
    type Whole: Copy;
    /// Sixteen times four bytes, in the form that `dot_quads` wants.
    type Quads: Copy;

    fn splat(self, value: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The greater; `b` when they are equal.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser; `b` when they are equal.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The lanes' bits plus 127, shifted left by 23: makes exponents.
    fn exponent(self, v: Self::V) -> Self::V;

    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    /// Rounds to the nearest bf16, ties to even.
    fn store_bf16(self, v: Self::V, to: &mut [bf16; LANES]);

    /// Rounds two vectors to the nearest bf16, ties to even.
    #[inline(always)]
    fn store_two_bf16(self, v: [Self::V; 2], to: &mut [bf16; 2 * LANES]) {
        let [low, high] = to.as_chunks_mut().0 else { return };
        self.store_bf16(v[0], low);
        self.store_bf16(v[1], high);
    }

    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::Pairs;
    /// `(acc + a[1] * b[1]) + a[0] * b[0]` in every lane.
    fn dot(self, acc: Self::V, a: [bf16; 2], b: Self::Pairs) -> Self::V;
    /// The even and the odd elements of sixteen pairs.
    fn load_split(self, from: &[bf16; 2 * LANES]) -> [Self::V; 2];

    /// Writes pairs of bf16, rounded to the nearest, ties to even.
    #[inline(always)]
    fn store_pairs(self, even: Self::V, odd: Self::V, to: &mut [bf16; 2 * LANES]) {
        let mut halves = [[bf16::ZERO; LANES]; 2];
        self.store_bf16(even, &mut halves[0]);
        self.store_bf16(odd, &mut halves[1]);
        for i in 0..LANES {
            (to[2 * i], to[2 * i + 1]) = (halves[0][i], halves[1][i]);
        }
    }

    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    /// Bits `4 * index` to `4 * index + 4` of the words as numbers from 0 to 15.
    fn nibbles(self, words: &[u32; LANES], index: usize) -> Self::V;
    /// Bits `8 * index` to `8 * index + 8` of the words as numbers from 0 to 255.
    fn bytes(self, words: &[u32; LANES], index: usize) -> Self::V;

    fn no_whole(self) -> Self::Whole;
    fn load_whole(self, from: &[i32; LANES]) -> Self::Whole;
    fn load_quads(self, from: &[u8; 4 * LANES]) -> Self::Quads;
    /// `acc + sum over i of a[i] * b[i]` in every lane. Exact while the sums fit.
    fn dot_quads(self, acc: Self::Whole, a: [i8; 4], b: Self::Quads) -> Self::Whole;
    /// `high * 16 + low`
    fn join(self, high: Self::Whole, low: Self::Whole) -> Self::Whole;
    /// `whole - less`, rounded once.
    fn value(self, whole: Self::Whole, less: i32) -> Self::V;

    /// The sum of the lanes, always added in the same order.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for width in [8, 4, 2] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0] + lanes[1]
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// `to[j][half * 16 + i] = from[i][j]`
    #[inline(always)]
    fn transpose(self, from: [&[u32; LANES]; LANES], to: &mut [[u32; 2 * LANES]; LANES], half: usize) {
        for (j, row) in to.iter_mut().enumerate() {
            for i in 0..LANES {
                row[half * LANES + i] = from[i][j];
            }
        }
    }

    /// Hints that the cache line at `at` will be read soon.
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T) {}
}

/// Two to the power of `x` to about 1e-7; zero below -126.5, at most 2^127.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    let [quotient, r, scale] = exp2_parts(s, s.max(s.min(x, s.splat(127.0)), s.splat(-127.0)));
    s.mul(s.fma(quotient, r, s.splat(1.0)), scale)
}

/// Two to the power of `x`, at most 127, to about 3e-6: enough for what is rounded to bf16.
#[inline(always)]
pub(crate) fn exp2_coarse<S: Simd>(s: S, x: S::V) -> S::V {
    /// Minimax polynomial of 2^r on [-1/2, 1/2], highest power first, that is 1 at 0.
    const COEFFICIENTS: [f32; 4] = [5.590_643_4e-2, 2.402_41e-1, 6.931_242e-1, 1.0];
    let [r, scale] = nearest(s, s.max(s.splat(-127.0), x));
    let mut power = s.splat(9.582_855e-3);
    for coefficient in COEFFICIENTS {
        power = s.fma(power, r, s.splat(coefficient));
    }
    s.mul(power, scale)
}

/// Hyperbolic tangent to about 3e-7 of its value, also next to zero.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // Beyond it the result is 1.
    const FAR: f32 = 30.0;
    let x = s.mul(x, s.splat(2.0 * std::f32::consts::LOG2_E));
    let [quotient, r, scale] = exp2_parts(s, s.max(s.min(x, s.splat(FAR)), s.splat(-FAR)));
    // e^2x - 1, without forming e^2x: next to zero it is `quotient * r` itself.
    let less_one = s.fma(s.mul(quotient, r), scale, s.sub(scale, s.splat(1.0)));
    s.div(less_one, s.add(less_one, s.splat(2.0)))
}

/// `[r, 2^n]` for `x = n + r` with the nearest integer `n`, for -127 to 127.
#[inline(always)]
fn nearest<S: Simd>(s: S, x: S::V) -> [S::V; 2] {
    /// Adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let shifted = s.add(x, s.splat(ROUND));
    [s.sub(x, s.sub(shifted, s.splat(ROUND))), s.exponent(shifted)]
}

/// `[(2^r - 1) / r, r, 2^n]` for `x = n + r` with the nearest integer `n`, for -127 to 127.
#[inline(always)]
fn exp2_parts<S: Simd>(s: S, x: S::V) -> [S::V; 3] {
    /// Minimax polynomial of (2^r - 1) / r on [-1/2, 1/2], highest power first (Cephes).
    const COEFFICIENTS: [f32; 5] =
        [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, std::f32::consts::LN_2];
    let [r, scale] = nearest(s, x);
    let mut quotient = s.splat(1.535_336_2e-4);
    for coefficient in COEFFICIENTS {
        quotient = s.fma(quotient, r, s.splat(coefficient));
    }
    [quotient, r, scale]
}
