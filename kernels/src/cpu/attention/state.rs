//! The softmax of some rows, range by range.

use std::ops::Range;

use crate::cpu::{
    element::Element,
    simd::{LANES, Simd, exp2},
};

/// Sums over the keys visited so far.
pub(super) struct State<'a> {
    /// `[row][padded head_dim]`, to be divided by the sums.
    pub outputs: &'a mut [f32],
    /// Sums of softmax numerators, by lane.
    pub sums: &'a mut [[f32; LANES]],
    /// Greatest scores, in units of log2; minus infinity for a row that has seen no key.
    pub greatest: &'a mut [f32],
}

// === impl State ===

impl<'a> State<'a> {
    /// Floats of a state of `rows` rows: whole lines.
    pub fn floats(rows: usize, padded_dim: usize) -> usize {
        (rows * (padded_dim + LANES + 1)).next_multiple_of(LANES)
    }

    /// A state within `floats`.
    pub fn within(floats: &'a mut [f32], rows: usize, padded_dim: usize) -> Self {
        let (outputs, rest) = floats.split_at_mut(rows * padded_dim);
        let (sums, rest) = rest.split_at_mut(rows * LANES);
        Self { outputs, sums: sums.as_chunks_mut().0, greatest: &mut rest[..rows] }
    }

    /// These rows have seen no keys.
    pub fn clear(&mut self, rows: Range<usize>) {
        let padded = self.outputs.len() / self.greatest.len();
        self.greatest[rows.clone()].fill(f32::NEG_INFINITY);
        self.sums[rows.clone()].fill([0.0; LANES]);
        self.outputs[rows.start * padded..rows.end * padded].fill(0.0);
    }

    #[inline(always)]
    fn output(&mut self, row: usize) -> &mut [[f32; LANES]] {
        let padded = self.outputs.len() / self.greatest.len();
        self.outputs[row * padded..][..padded].as_chunks_mut().0
    }

    /// Turns all products of `row`, which times `unit` are scores in units of log2, into weights.
    /// The output lacks them still.
    #[inline(always)]
    pub fn soften<S: Simd, E: Element>(
        &mut self,
        s: S,
        row: usize,
        (products, unit): (&[f32], f32),
        weights: &mut [E],
    ) {
        let (products, _) = products.as_chunks::<LANES>();
        let (products, _) = products.as_chunks::<2>();
        let mut greatest = [s.splat(f32::NEG_INFINITY); 2];
        for two in products {
            greatest = [s.max(greatest[0], s.load(&two[0])), s.max(greatest[1], s.load(&two[1]))];
        }
        let greatest = s.greatest(s.max(greatest[0], greatest[1])) * unit;
        self.greatest[row] = greatest;
        let (unit, less) = (s.splat(unit), s.splat(-greatest));
        let mut sums = [s.splat(0.0); 2];
        for (two, weights) in products.iter().zip(weights.as_chunks_mut::<{ 2 * LANES }>().0) {
            let even = E::exp2(s, s.fma(s.load(&two[0]), unit, less));
            let odd = E::exp2(s, s.fma(s.load(&two[1]), unit, less));
            E::store_two(s, [even, odd], weights);
            sums = [s.add(sums[0], even), s.add(sums[1], odd)];
        }
        s.store(s.add(sums[0], sums[1]), &mut self.sums[row]);
    }

    /// Takes in what later keys gave.
    #[inline(always)]
    pub fn merge<S: Simd>(&mut self, s: S, later: &mut State<'_>) {
        for row in 0..self.greatest.len() {
            let [before, other] = [self.greatest[row], later.greatest[row]];
            if other == f32::NEG_INFINITY {
                continue;
            }
            let greatest = before.max(other);
            self.greatest[row] = greatest;
            let (mine, theirs) = (exp2(s, s.splat(before - greatest)), exp2(s, s.splat(other - greatest)));
            let (to, from) = (&mut self.sums[row], &later.sums[row]);
            s.store(s.fma(s.load(from), theirs, s.mul(s.load(to), mine)), to);
            for (to, from) in self.output(row).iter_mut().zip(later.output(row)) {
                s.store(s.fma(s.load(from), theirs, s.mul(s.load(to), mine)), to);
            }
        }
    }

    /// Divides the output by the sums.
    #[inline(always)]
    pub fn finish<S: Simd>(&mut self, s: S) {
        for row in 0..self.greatest.len() {
            let factor = s.splat(1.0 / s.sum(s.load(&self.sums[row])));
            for lanes in self.output(row) {
                s.store(s.mul(s.load(lanes), factor), lanes);
            }
        }
    }
}
