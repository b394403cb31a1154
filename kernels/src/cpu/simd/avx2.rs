//! AVX2 with FMA and F16C: sixteen lanes are two registers.

#![expect(unsafe_code, reason = "intrinsics; a value of `Avx2` proves that the processor has them")]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Simd};

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

type Two = [__m256; 2];

impl Avx2 {
    /// # Safety
    /// The processor must have AVX2, FMA and F16C.
    #[inline(always)]
    pub(super) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The lower halves of the words as bf16, widened.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn upper(words: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)) }
}

/// Rounded to bf16, in the lower halves of the words.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn rounded(v: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half))
    }
}

// SAFETY of every block below: `self` proves the features, and loads and
// stores go through references to arrays of exactly the two vectors' size.
impl Simd for Avx2 {
    const TILE_ROWS: usize = 3;
    type V = Two;
    /// Even and odd elements.
    type Pairs = [Two; 2];
    type Whole = [__m256i; 2];
    type Quads = [__m256i; 2];

    #[inline(always)]
    fn splat(self, value: f32) -> Two {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Two {
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn store(self, v: Two, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Two, b: Two) -> Two {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Two, b: Two, c: Two) -> Two {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn exponent(self, v: Two) -> Two {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(v[0]), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_castps_si256(v[1]), bias));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Two {
        unsafe {
            let all = _mm256_loadu_si256(from.as_ptr().cast());
            let low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(all));
            let high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(all));
            [upper(low), upper(high)]
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: Two, to: &mut [bf16; LANES]) {
        unsafe {
            let packed = _mm256_packus_epi32(rounded(v[0]), rounded(v[1]));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), packed);
        }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> [Two; 2] {
        self.load_split(from)
    }

    #[inline(always)]
    fn dot(self, acc: Two, a: [bf16; 2], b: [Two; 2]) -> Two {
        let acc = self.fma(self.splat(widen(a[1])), b[1], acc);
        self.fma(self.splat(widen(a[0])), b[0], acc)
    }

    #[inline(always)]
    fn load_split(self, from: &[bf16; 2 * LANES]) -> [Two; 2] {
        unsafe {
            let low = _mm256_loadu_si256(from.as_ptr().cast());
            let high = _mm256_loadu_si256(from.as_ptr().add(16).cast());
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let odd_low = _mm256_castsi256_ps(_mm256_and_si256(low, mask));
            let odd_high = _mm256_castsi256_ps(_mm256_and_si256(high, mask));
            [[upper(low), upper(high)], [odd_low, odd_high]]
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Two {
        unsafe {
            let from: *const __m128i = from.as_ptr().cast();
            [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
        }
    }

    #[inline(always)]
    fn nibbles(self, words: &[u32; LANES], index: usize) -> Two {
        unsafe {
            let shift = _mm_cvtsi64_si128(4 * index as i64);
            let number = |words: *const u32| {
                let shifted = _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), shift);
                _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)))
            };
            [number(words.as_ptr()), number(words.as_ptr().add(8))]
        }
    }

    #[inline(always)]
    fn bytes(self, words: &[u32; LANES], index: usize) -> Two {
        unsafe {
            let shift = _mm_cvtsi64_si128(8 * index as i64);
            let number = |words: *const u32| {
                let shifted = _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), shift);
                _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)))
            };
            [number(words.as_ptr()), number(words.as_ptr().add(8))]
        }
    }

    #[inline(always)]
    fn no_whole(self) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn load_whole(self, from: &[i32; LANES]) -> [__m256i; 2] {
        unsafe {
            let from: *const __m256i = from.as_ptr().cast();
            [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
        }
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> [__m256i; 2] {
        unsafe {
            let from: *const __m256i = from.as_ptr().cast();
            [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
        }
    }

    #[inline(always)]
    fn dot_quads(self, acc: [__m256i; 2], a: [i8; 4], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let a = _mm256_set1_epi32(i32::from_le_bytes(a.map(|byte| byte as u8)));
            // Bytes 0 and 2 of each four, then 1 and 3, as numbers of sixteen bits.
            let [evens, odds] =
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)), _mm256_srai_epi16::<8>(a)];
            let mut sums = acc;
            for (sum, b) in sums.iter_mut().zip(b) {
                let even = _mm256_madd_epi16(_mm256_and_si256(b, _mm256_set1_epi16(255)), evens);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(b), odds);
                *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(even, odd));
            }
            sums
        }
    }

    #[inline(always)]
    fn join(self, high: [__m256i; 2], low: [__m256i; 2]) -> [__m256i; 2] {
        let half =
            |high: __m256i, low: __m256i| unsafe { _mm256_add_epi32(_mm256_slli_epi32::<4>(high), low) };
        [half(high[0], low[0]), half(high[1], low[1])]
    }

    #[inline(always)]
    fn value(self, whole: [__m256i; 2], less: i32) -> Two {
        whole.map(|whole| unsafe { _mm256_cvtepi32_ps(_mm256_sub_epi32(whole, _mm256_set1_epi32(less))) })
    }
}
