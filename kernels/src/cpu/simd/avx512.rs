//! AVX-512, with or without its dot products of bf16 and of bytes.

#![expect(unsafe_code, reason = "intrinsics; a value of `Avx512` proves that the processor has them")]

use std::{arch::x86_64::*, mem::transmute};

use half::{bf16, f16};

use super::{LANES, Simd};

/// Proof of AVX-512 F, BW, DQ and VL, and of BF16 and VNNI if so marked.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The processor must have the features named at the type.
    #[inline(always)]
    pub(super) unsafe fn new_unchecked() -> Self {
        Self(())
    }
}

/// The bits of `value` in the upper half of an f32.
#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

// SAFETY of every block below: `self` proves the features, and loads and
// stores go through references to arrays of exactly the vector's size.
impl<const BF16: bool> Simd for Avx512<BF16> {
    const TILE_ROWS: usize = 12;
    type V = __m512;
    type Pairs = __m512i;
    type Whole = __m512i;
    type Quads = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn exponent(self, v: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [bf16; LANES]) {
        unsafe {
            let narrow: __m256i = if BF16 {
                transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half)))
            };
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }

    #[inline(always)]
    fn store_two_bf16(self, v: [__m512; 2], to: &mut [bf16; 2 * LANES]) {
        if BF16 {
            unsafe {
                let narrow = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(v[1], v[0]));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), narrow);
            }
            return;
        }
        let [low, high] = to.as_chunks_mut().0 else { return };
        self.store_bf16(v[0], low);
        self.store_bf16(v[1], high);
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot(self, acc: __m512, a: [bf16; 2], b: __m512i) -> __m512 {
        unsafe {
            if BF16 {
                let pair = _mm512_set1_epi32(transmute::<[bf16; 2], i32>(a));
                return _mm512_dpbf16_ps(
                    acc,
                    transmute::<__m512i, __m512bh>(pair),
                    transmute::<__m512i, __m512bh>(b),
                );
            }
            let odd = _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b));
            let acc = _mm512_fmadd_ps(_mm512_set1_ps(widen(a[1])), odd, acc);
            _mm512_fmadd_ps(_mm512_set1_ps(widen(a[0])), even, acc)
        }
    }

    #[inline(always)]
    fn load_split(self, from: &[bf16; 2 * LANES]) -> [__m512; 2] {
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    fn store_pairs(self, even: __m512, odd: __m512, to: &mut [bf16; 2 * LANES]) {
        let mut halves = [bf16::ZERO; 2 * LANES];
        let [low, high] = halves.as_chunks_mut().0 else { return };
        self.store_bf16(even, low);
        self.store_bf16(odd, high);
        unsafe {
            let order = _mm512_setr_epi32(
                0x10_0000, 0x11_0001, 0x12_0002, 0x13_0003, 0x14_0004, 0x15_0005, 0x16_0006, 0x17_0007,
                0x18_0008, 0x19_0009, 0x1a_000a, 0x1b_000b, 0x1c_000c, 0x1d_000d, 0x1e_000e, 0x1f_000f,
            );
            let pairs = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(halves.as_ptr().cast()));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(self, words: &[u32; LANES], index: usize) -> __m512 {
        unsafe {
            let shift = _mm_cvtsi64_si128(4 * index as i64);
            let shifted = _mm512_srl_epi32(_mm512_loadu_si512(words.as_ptr().cast()), shift);
            // A permutation looks at the lowest four bits alone.
            let numbers =
                _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            _mm512_permutexvar_ps(shifted, numbers)
        }
    }

    #[inline(always)]
    fn bytes(self, words: &[u32; LANES], index: usize) -> __m512 {
        unsafe {
            let shift = _mm_cvtsi64_si128(8 * index as i64);
            let shifted = _mm512_srl_epi32(_mm512_loadu_si512(words.as_ptr().cast()), shift);
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }

    #[inline(always)]
    fn no_whole(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load_whole(self, from: &[i32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_quads(self, acc: __m512i, a: [i8; 4], b: __m512i) -> __m512i {
        unsafe {
            let a = _mm512_set1_epi32(transmute::<[i8; 4], i32>(a));
            if BF16 {
                return _mm512_dpbusd_epi32(acc, b, a);
            }
            // Bytes 0 and 2 of each four, then 1 and 3, as numbers of sixteen bits.
            let low_bytes = _mm512_set1_epi16(255);
            let even = _mm512_madd_epi16(
                _mm512_and_si512(b, low_bytes),
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a)),
            );
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(b), _mm512_srai_epi16::<8>(a));
            _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    fn join(self, high: __m512i, low: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<4>(high), low) }
    }

    #[inline(always)]
    fn value(self, whole: __m512i, less: i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, _mm512_set1_epi32(less))) }
    }

    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn transpose(self, from: [&[u32; LANES]; LANES], to: &mut [[u32; 2 * LANES]; LANES], half: usize) {
        assert!(half < 2);
        unsafe {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (row, from) in rows.iter_mut().zip(from) {
                *row = _mm512_loadu_si512(from.as_ptr().cast());
            }
            let columns = transpose(rows);
            for (column, to) in columns.into_iter().zip(to) {
                _mm512_storeu_si512(to.as_mut_ptr().add(half * LANES).cast(), column);
            }
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // Any address may be prefetched; it is only a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// Sixteen by sixteen words, in four rounds of shuffles.
///
/// # Safety
/// The processor must have AVX-512 F.
#[inline(always)]
unsafe fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    unsafe {
        let mut a = rows;
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // Now b[4 i + j] holds, in its quarter q, column 4 q + j of rows 4 i .. 4 i + 4.
        let mut b = a;
        for i in 0..4 {
            b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
            b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
            b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
            b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
        }
        let mut out = b;
        for j in 0..4 {
            let even_low = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[j], b[4 + j]);
            let odd_low = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[j], b[4 + j]);
            let even_high = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[8 + j], b[12 + j]);
            let odd_high = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[8 + j], b[12 + j]);
            out[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_low, even_high);
            out[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_low, odd_high);
            out[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_low, even_high);
            out[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_low, odd_high);
        }
        out
    }
}
