//! The innermost product: some rows times one panel of 32 columns, all sums in registers.
//!
//! ```text
//! c[r][j] (+)= sum over k of a[r][k] * b[k][j]        r < rows, j < 32
//! ```
//!
//! A panel holds its elements in the order in which they are used: of bf16
//! `[k / 2][32][2]`, of f32 `[k][32]`. One accumulator takes all of `k` in
//! order, so a sum does not depend on how many rows are computed along.

#![expect(
    unsafe_code,
    reason = "unchecked reads in the innermost loop; `Product::multiply` checks all bounds"
)]

use half::bf16;

use super::simd::{LANES, Simd};

/// Columns of a panel.
pub const PANEL: usize = 2 * LANES;

/// Rows in memory: row `r` starts at `r * stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    pub values: &'a [T],
    pub stride: usize,
    pub rows: usize,
}

/// Where a tile goes: row `r` starts at `r * stride`.
pub struct Tile<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
    /// Whether to start from what is there instead of from zero.
    pub accumulate: bool,
}

/// How elements of `Self` (rows) and `B` (panels) are multiplied.
pub trait Product<B: Copy>: Copy {
    /// Two elements of sixteen columns of a panel, ready to be multiplied.
    type Operand<S: Simd>: Copy;

    /// Loads the `v`-th sixteen columns of a pair of rows of a panel.
    fn operand<S: Simd>(simd: S, pair: &[B; 2 * PANEL], v: usize) -> Self::Operand<S>;

    /// `acc + a[1] * b[1] + a[0] * b[0]`, in this order.
    fn step<S: Simd>(simd: S, acc: S::V, a: [Self; 2], b: Self::Operand<S>) -> S::V;

    /// Multiplies all `rows` (at most `S::TILE_ROWS`) with a panel of `rows.k` pairs.
    ///
    /// # Panics
    /// When a slice is too short.
    #[inline(always)]
    fn multiply<S: Simd>(simd: S, a: Rows<'_, Self>, panel: &[B], c: Tile<'_>) {
        let (pairs, rest) = panel.as_chunks::<{ 2 * PANEL }>();
        assert!(rest.is_empty() && 0 < a.rows && a.rows <= S::TILE_ROWS);
        assert!((a.rows - 1) * a.stride + 2 * pairs.len() <= a.values.len());
        assert!((a.rows - 1) * c.stride + PANEL <= c.values.len());
        macro_rules! with_rows {
            ($($rows:literal)*) => {
                match a.rows {
                    // SAFETY: the asserts above.
                    $($rows if $rows <= S::TILE_ROWS => unsafe { multiply::<S, Self, B, $rows>(simd, a, pairs, c) },)*
                    _ => unreachable!("tiles have at most twelve rows"),
                }
            };
        }
        with_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// # Safety
/// `a` must hold `R` rows of `2 * pairs.len()` elements, `c` `R` rows of 32.
#[inline(always)]
unsafe fn multiply<S: Simd, A: Product<B>, B: Copy, const R: usize>(
    simd: S,
    a: Rows<'_, A>,
    pairs: &[[B; 2 * PANEL]],
    c: Tile<'_>,
) {
    let mut acc = [[simd.splat(0.0); 2]; R];
    let Tile { values, stride, accumulate } = c;
    let out = values.as_mut_ptr();
    if accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                // SAFETY: in row `r` of `c`.
                *acc = simd.load(unsafe { &*out.add(r * stride + v * LANES).cast() });
            }
        }
    }
    let mut at = a.values.as_ptr();
    for pair in pairs {
        let b = [A::operand(simd, pair, 0), A::operand(simd, pair, 1)];
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `at` is at an even element of row 0, and row `r` has two more.
            let two = unsafe { at.add(r * a.stride).cast::<[A; 2]>().read_unaligned() };
            for v in 0..2 {
                acc[v] = A::step(simd, acc[v], two, b[v]);
            }
        }
        // SAFETY: at most one past the row's last element.
        at = unsafe { at.add(2) };
    }
    for (r, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: in row `r` of `c`.
            simd.store(*acc, unsafe { &mut *out.add(r * stride + v * LANES).cast() });
        }
    }
}

/// Sixteen elements of an array, from `at` on.
#[inline(always)]
fn part<T, const N: usize, const M: usize>(from: &[T; N], at: usize) -> &[T; M] {
    assert!(at + M <= N);
    // SAFETY: checked above (and folded away: `at` is a constant where it is called).
    unsafe { &*from.as_ptr().add(at).cast() }
}

// Weights and bf16 caches with bf16 activations.
impl Product<bf16> for bf16 {
    type Operand<S: Simd> = S::Pairs;

    #[inline(always)]
    fn operand<S: Simd>(simd: S, pair: &[bf16; 2 * PANEL], v: usize) -> S::Pairs {
        simd.load_pairs(part(pair, v * 2 * LANES))
    }

    #[inline(always)]
    fn step<S: Simd>(simd: S, acc: S::V, a: [bf16; 2], b: S::Pairs) -> S::V {
        simd.dot(acc, a, b)
    }
}

// Weights with f32 activations.
impl Product<bf16> for f32 {
    type Operand<S: Simd> = [S::V; 2];

    #[inline(always)]
    fn operand<S: Simd>(simd: S, pair: &[bf16; 2 * PANEL], v: usize) -> [S::V; 2] {
        simd.load_split(part(pair, v * 2 * LANES))
    }

    #[inline(always)]
    fn step<S: Simd>(simd: S, acc: S::V, a: [f32; 2], b: [S::V; 2]) -> S::V {
        simd.fma(simd.splat(a[0]), b[0], simd.fma(simd.splat(a[1]), b[1], acc))
    }
}

// f32 caches.
impl Product<f32> for f32 {
    type Operand<S: Simd> = [S::V; 2];

    #[inline(always)]
    fn operand<S: Simd>(simd: S, pair: &[f32; 2 * PANEL], v: usize) -> [S::V; 2] {
        [simd.load(part(pair, v * LANES)), simd.load(part(pair, PANEL + v * LANES))]
    }

    #[inline(always)]
    fn step<S: Simd>(simd: S, acc: S::V, a: [f32; 2], b: [S::V; 2]) -> S::V {
        simd.fma(simd.splat(a[0]), b[0], simd.fma(simd.splat(a[1]), b[1], acc))
    }
}
