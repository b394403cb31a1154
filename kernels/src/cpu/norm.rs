//! Root mean square norm.

use super::{
    element::Element,
    pool::ComputePool,
    simd::{Isa, LANES, Simd, Work},
};

/// Rows of one task: enough to be worth a thread's while.
const TASK_ELEMENTS: usize = 16 << 10;

/// Weights of a norm.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// One factor for each element of a row.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// `out[m][n] = x[m][n] / sqrt(mean of x[m]^2 + eps) * weight[n]`, rounded to elements.
///
/// # Panics
/// When `x` is not whole rows or `out` is of another length.
pub fn rms_norm<E: Element>(pool: &ComputePool, x: &[f32], norm: &RmsNorm, out: &mut [E]) {
    rows::<E, false>(pool, x, norm, out);
}

/// `out[m][n] += x[m][n] / sqrt(mean of x[m]^2 + eps) * weight[n]`
///
/// # Panics
/// As [`rms_norm`].
pub fn rms_norm_add(pool: &ComputePool, x: &[f32], norm: &RmsNorm, out: &mut [f32]) {
    rows::<f32, true>(pool, x, norm, out);
}

/// Norms every row of `x` where it is. Rows are as long as the weights: a head, or all heads of a token.
///
/// # Panics
/// When `x` is not whole rows.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], norm: &RmsNorm) {
    assert!(x.len().is_multiple_of(norm.weight.len()));
    isa.run(InPlace { x, norm });
}

fn rows<E: Element, const ADD: bool>(pool: &ComputePool, x: &[f32], norm: &RmsNorm, out: &mut [E]) {
    let width = norm.weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width));
    let task = (TASK_ELEMENTS / width).max(1) * width;
    let tasks: Vec<_> = x.chunks(task).zip(out.chunks_mut(task)).collect();
    pool.for_each(tasks, |(x, out)| {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            pool.isa().run(Row::<E, ADD> { x, norm, out });
        }
    });
}

/// One row, stored or added.
struct Row<'a, E, const ADD: bool> {
    x: &'a [f32],
    norm: &'a RmsNorm,
    out: &'a mut [E],
}

/// Some rows, each replaced.
struct InPlace<'a> {
    x: &'a mut [f32],
    norm: &'a RmsNorm,
}

/// `1 / sqrt(mean of x^2 + eps)`
#[inline(always)]
fn inverse_root_mean<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut squares = s.splat(0.0);
    for x in lanes {
        squares = s.fma(s.load(x), s.load(x), squares);
    }
    let mut sum = s.sum(squares);
    for x in rest {
        sum += x * x;
    }
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

impl<E: Element, const ADD: bool> Work for Row<'_, E, ADD> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = inverse_root_mean(s, self.x, self.norm.eps);
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (weight, weight_rest) = self.norm.weight.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            let normed = s.mul(s.mul(s.load(x), s.splat(scale)), s.load(weight));
            let normed = if ADD { s.add(E::load(s, out), normed) } else { normed };
            E::store(s, normed, out);
        }
        for ((x, weight), out) in x_rest.iter().zip(weight_rest).zip(out_rest) {
            let normed = x * scale * weight;
            *out = E::from_f32(if ADD { out.to_f32() + normed } else { normed });
        }
    }
}

impl Work for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (weight, weight_rest) = self.norm.weight.as_chunks::<LANES>();
        for x in self.x.chunks_exact_mut(self.norm.weight.len()) {
            let scale = inverse_root_mean(s, x, self.norm.eps);
            let (x, x_rest) = x.as_chunks_mut::<LANES>();
            for (x, weight) in x.iter_mut().zip(weight) {
                s.store(s.mul(s.mul(s.load(x), s.splat(scale)), s.load(weight)), x);
            }
            for (x, weight) in x_rest.iter_mut().zip(weight_rest) {
                *x = *x * scale * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn agrees_with_the_formula_at_every_length() {
        let mut random = fastrand::Rng::with_seed(3);
        for width in [1, 5, 16, 24, 80, 576, 700] {
            let norm = RmsNorm { weight: (0..width).map(|_| random.f32()).collect(), eps: 1e-5 };
            let x: Vec<f32> = (0..50 * width).map(|_| 4.0 * random.f32() - 2.0).collect();
            let expected: Vec<f32> =
                x.chunks(width).flat_map(|x| reference::rms_norm(x, &norm.weight, 1e-5)).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::supported() {
                let pool = ComputePool::with_isa(2, isa).unwrap();
                let mut out = vec![0.0_f32; x.len()];
                rms_norm(&pool, &x, &norm, &mut out);
                for (out, expected) in out.iter().zip(&expected) {
                    assert!((out - expected).abs() < 1e-5, "{isa:?}: {out} {expected}");
                }
                assert_eq!(*first.get_or_insert(out.clone()), out, "{isa:?}");
                let mut in_place = x.clone();
                rms_norm_in_place(isa, &mut in_place, &norm);
                assert_eq!(in_place, out, "{isa:?}");
                let mut sum = x.clone();
                rms_norm_add(&pool, &x, &norm, &mut sum);
                assert!(sum.iter().zip(x.iter().zip(&out)).all(|(sum, (x, out))| *sum == x + out), "{isa:?}");
            }
        }
    }
}
