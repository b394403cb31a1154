//! What activations and cached keys and values are stored as: bf16 or f32.

use std::fmt::Debug;

use bytemuck::Pod;
use half::bf16;

use super::{
    amx::{BLOCK, Line},
    simd::{Isa, LANES, Simd, Work, exp2, exp2_coarse},
    tile::{PANEL, Product},
};

/// An element of activations and of the KV cache: [`bf16`] or [`f32`]. Sums are f32 in any case.
pub trait Element: Pod + Default + PartialEq + Debug + Send + Sync + Product<bf16> + Product<Self> {
    /// Numbers of bf16 that tile registers take for one element.
    #[doc(hidden)]
    const PARTS: usize;

    /// Rounded to the nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Exactly.
    fn to_f32(self) -> f32;

    /// Writes [`PARTS`](Self::PARTS) lines whose sum is `from`, to sixteen bits.
    #[doc(hidden)]
    fn split<S: Simd>(simd: S, from: &[Self; BLOCK], to: &mut [Line; 2]);
    /// The elements themselves, if they are bf16.
    #[doc(hidden)]
    fn as_bf16(values: &[Self]) -> Option<&[bf16]>;

    /// Sixteen elements as a vector.
    #[doc(hidden)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V;
    /// A vector as sixteen elements, rounded to the nearest, ties to even.
    #[doc(hidden)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]);
    /// Two vectors as 32 elements.
    #[doc(hidden)]
    fn store_two<S: Simd>(simd: S, v: [S::V; 2], to: &mut [Self; 2 * LANES]);
    /// Two to the power of `x`, at most 127, to well within what an element holds; zero below -126.5.
    #[doc(hidden)]
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V;
    /// Two rows of a panel in the order in which the tile kernel reads them.
    #[doc(hidden)]
    fn pair_up(even: &[Self; PANEL], odd: &[Self; PANEL], to: &mut [Self; 2 * PANEL]);
}

/// Rounds `from` to elements.
///
/// # Panics
/// When the lengths differ.
pub fn round_into<E: Element>(isa: Isa, from: &[f32], to: &mut [E]) {
    assert_eq!(from.len(), to.len());
    isa.run(RoundInto { from, to });
}

struct RoundInto<'a, E> {
    from: &'a [f32],
    to: &'a mut [E],
}

impl<E: Element> Work for RoundInto<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, from_rest) = self.from.as_chunks();
        let (to, to_rest) = self.to.as_chunks_mut();
        for (from, to) in from.iter().zip(to) {
            E::store(s, s.load(from), to);
        }
        for (from, to) in from_rest.iter().zip(to_rest) {
            *to = E::from_f32(*from);
        }
    }
}

impl Element for bf16 {
    const PARTS: usize = 1;

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn split<S: Simd>(_: S, from: &[Self; BLOCK], to: &mut [Line; 2]) {
        to[0].0 = *from;
    }

    #[inline(always)]
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]) {
        simd.store_bf16(v, to);
    }

    #[inline(always)]
    fn store_two<S: Simd>(simd: S, v: [S::V; 2], to: &mut [Self; 2 * LANES]) {
        simd.store_two_bf16(v, to);
    }

    #[inline(always)]
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
        exp2_coarse(simd, x)
    }

    #[inline(always)]
    fn pair_up(even: &[Self; PANEL], odd: &[Self; PANEL], to: &mut [Self; 2 * PANEL]) {
        for i in 0..PANEL {
            to[2 * i] = even[i];
            to[2 * i + 1] = odd[i];
        }
    }
}

impl Element for f32 {
    const PARTS: usize = 2;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn split<S: Simd>(simd: S, from: &[Self; BLOCK], [upper, lower]: &mut [Line; 2]) {
        let parts = upper.0.as_chunks_mut().0.iter_mut().zip(lower.0.as_chunks_mut().0);
        for (from, (upper, lower)) in from.as_chunks().0.iter().zip(parts) {
            let values = simd.load(from);
            simd.store_bf16(values, upper);
            simd.store_bf16(simd.sub(values, simd.load_bf16(upper)), lower);
        }
    }

    #[inline(always)]
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::V {
        simd.load(from)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self; LANES]) {
        simd.store(v, to);
    }

    #[inline(always)]
    fn store_two<S: Simd>(simd: S, v: [S::V; 2], to: &mut [Self; 2 * LANES]) {
        let [low, high] = to.as_chunks_mut().0 else { return };
        simd.store(v[0], low);
        simd.store(v[1], high);
    }

    #[inline(always)]
    fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
        exp2(simd, x)
    }

    #[inline(always)]
    fn pair_up(even: &[Self; PANEL], odd: &[Self; PANEL], to: &mut [Self; 2 * PANEL]) {
        to[..PANEL].copy_from_slice(even);
        to[PANEL..].copy_from_slice(odd);
    }
}
