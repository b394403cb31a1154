//! The running softmax of some rows.

use super::TILE_KEYS;
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
    /// Floats of a state of `rows` rows.
    pub fn floats(rows: usize, padded_dim: usize) -> usize {
        rows * (padded_dim + LANES + 1)
    }

    /// A state within `floats`.
    pub fn within(floats: &'a mut [f32], rows: usize, padded_dim: usize) -> Self {
        let (outputs, rest) = floats.split_at_mut(rows * padded_dim);
        let (sums, rest) = rest.split_at_mut(rows * LANES);
        Self { outputs, sums: sums.as_chunks_mut().0, greatest: &mut rest[..rows] }
    }

    /// No keys seen.
    pub fn clear(&mut self) {
        self.greatest.fill(f32::NEG_INFINITY);
        self.sums.fill([0.0; LANES]);
        self.outputs.fill(0.0);
    }

    #[inline(always)]
    fn output(&mut self, row: usize) -> &mut [[f32; LANES]] {
        let padded = self.outputs.len() / self.greatest.len();
        self.outputs[row * padded..][..padded].as_chunks_mut().0
    }

    /// Takes a tile's scores of `row` in: turns them into weights, and scales
    /// sum and output to the new greatest score. The output lacks the tile still.
    #[inline(always)]
    pub fn soften<S: Simd, E: Element>(
        &mut self,
        s: S,
        row: usize,
        scaled: &[f32; TILE_KEYS],
        weights: &mut [E; TILE_KEYS],
    ) {
        let scores = scaled.as_chunks::<LANES>().0;
        let mut numerators = [s.splat(0.0); TILE_KEYS / LANES];
        for (numerators, scores) in numerators.iter_mut().zip(scores) {
            *numerators = s.load(scores);
        }
        let before = self.greatest[row];
        let tile = s.max(s.max(numerators[0], numerators[1]), s.max(numerators[2], numerators[3]));
        let greatest = before.max(s.greatest(tile));
        self.greatest[row] = greatest;
        for (numerators, weights) in numerators.iter_mut().zip(weights.as_chunks_mut::<LANES>().0) {
            *numerators = exp2(s, s.sub(*numerators, s.splat(greatest)));
            E::store(s, *numerators, weights);
        }
        let sum = s.add(s.add(numerators[0], numerators[1]), s.add(numerators[2], numerators[3]));
        let factor = exp2(s, s.sub(s.splat(before), s.splat(greatest)));
        let sums = &mut self.sums[row];
        s.store(s.fma(s.load(sums), factor, sum), sums);
        if greatest > before {
            for output in self.output(row) {
                s.store(s.mul(s.load(output), factor), output);
            }
        }
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
