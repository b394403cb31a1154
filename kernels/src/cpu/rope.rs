//! Rotary position embedding, half-split form: of the first elements of a head
//! that turn, the first half turns with the second.

use super::{
    element::{Element, round_into},
    simd::{Isa, Simd, Work},
};

/// Cosines and sines of some rows' positions, for all heads and layers of a step.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `[row][half]`
    cos: Vec<f32>,
    /// `[row][half]`
    sin: Vec<f32>,
    /// Element `i` turns with element `i + half`; those from `2 * half` on stay.
    half: usize,
    head_dim: usize,
}

// === impl Rotation ===

impl Rotation {
    /// For one row at each of `positions`: elements `i` and `i + frequencies.len()`
    /// of a head turn by `position * frequencies[i]`, elements after them stay.
    /// `magnitude` is a factor of all cosines and sines.
    ///
    /// # Panics
    /// When a head has fewer elements than would turn.
    pub fn new(
        positions: impl IntoIterator<Item = usize>,
        head_dim: usize,
        frequencies: &[f32],
        magnitude: f32,
    ) -> Self {
        assert!(2 * frequencies.len() <= head_dim, "more frequencies than pairs");
        // Angles are rounded to f32 as in the models' reference implementation;
        // their cosines are not left to the platform's single precision.
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in frequencies {
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * magnitude);
                sin.push(angle.sin() as f32 * magnitude);
            }
        }
        Self { cos, sin, half: frequencies.len(), head_dim }
    }

    /// Turns all `heads` of row `row` and rounds them to elements.
    ///
    /// # Panics
    /// When there is no such row, or `heads` and `to` are not equally many whole heads.
    pub fn apply<E: Element>(&self, isa: Isa, row: usize, heads: &[f32], to: &mut [E]) {
        assert!(heads.len() == to.len() && heads.len().is_multiple_of(self.head_dim));
        let turning = 2 * self.half;
        if turning < self.head_dim {
            for (head, to) in heads.chunks_exact(self.head_dim).zip(to.chunks_exact_mut(self.head_dim)) {
                round_into(isa, &head[turning..], &mut to[turning..]);
            }
        }
        let angles = row * self.half..(row + 1) * self.half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        isa.run(Apply { cos, sin, head_dim: self.head_dim, heads, to });
    }
}

struct Apply<'a, E> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
    heads: &'a [f32],
    to: &'a mut [E],
}

impl<E: Element> Work for Apply<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        let (cos, cos_rest) = self.cos.as_chunks();
        let (sin, sin_rest) = self.sin.as_chunks();
        let to = self.to.chunks_exact_mut(self.head_dim);
        for (head, to) in self.heads.chunks_exact(self.head_dim).zip(to) {
            let (low, high) = head[..2 * half].split_at(half);
            let (to_low, to_high) = to[..2 * half].split_at_mut(half);
            let [(low, low_rest), (high, high_rest)] = [low.as_chunks(), high.as_chunks()];
            let (to_low, to_low_rest) = to_low.as_chunks_mut();
            let (to_high, to_high_rest) = to_high.as_chunks_mut();
            for i in 0..cos.len() {
                let [c, n] = [s.load(&cos[i]), s.load(&sin[i])];
                let [a, b] = [s.load(&low[i]), s.load(&high[i])];
                E::store(s, s.sub(s.mul(a, c), s.mul(b, n)), &mut to_low[i]);
                E::store(s, s.add(s.mul(b, c), s.mul(a, n)), &mut to_high[i]);
            }
            for i in 0..cos_rest.len() {
                let [c, n, a, b] = [cos_rest[i], sin_rest[i], low_rest[i], high_rest[i]];
                to_low_rest[i] = E::from_f32(a * c - b * n);
                to_high_rest[i] = E::from_f32(b * c + a * n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::reference;

    #[test]
    fn agrees_with_the_formula_for_every_head() {
        let mut random = fastrand::Rng::with_seed(5);
        for (head_dim, turning, magnitude) in [
            (2, 2, 1.0),
            (8, 6, 1.0),
            (32, 32, 1.25),
            (40, 40, 1.0),
            (64, 16, 1.0),
            (80, 32, 1.5),
            (128, 0, 1.0),
        ] {
            let heads: Vec<f32> = (0..3 * head_dim).map(|_| random.f32() - 0.5).collect();
            let positions = [0, 1, 17, 2000];
            let frequencies = reference::rope_frequencies(turning, 10_000.0);
            let rotation = Rotation::new(positions, head_dim, &frequencies, magnitude);
            for (row, position) in positions.into_iter().enumerate() {
                let expected: Vec<f32> = heads
                    .chunks(head_dim)
                    .flat_map(|head| reference::rope(head, position, &frequencies, magnitude))
                    .collect();
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::supported() {
                    let mut turned = vec![f32::NAN; heads.len()];
                    rotation.apply(isa, row, &heads, &mut turned);
                    for (turned, expected) in turned.iter().zip(&expected) {
                        assert!((turned - expected).abs() < 3e-4, "{isa:?}: {turned} {expected}");
                    }
                    assert_eq!(*first.get_or_insert(turned.clone()), turned, "{isa:?}");
                    let mut rounded = vec![bf16::ZERO; heads.len()];
                    rotation.apply(isa, row, &heads, &mut rounded);
                    assert!(rounded.iter().zip(&turned).all(|(a, b)| *a == bf16::from_f32(*b)));
                }
            }
        }
    }
}
