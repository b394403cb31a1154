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
    let width = norm.weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width));
    let task = (TASK_ELEMENTS / width).max(1) * width;
    let tasks: Vec<_> = x.chunks(task).zip(out.chunks_mut(task)).collect();
    pool.for_each(tasks, |(x, out)| rows(pool.isa(), x, norm, out));
}

fn rows<E: Element>(isa: Isa, x: &[f32], norm: &RmsNorm, out: &mut [E]) {
    let width = norm.weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        isa.run(Row { x, norm, out });
    }
}

struct Row<'a, E> {
    x: &'a [f32],
    norm: &'a RmsNorm,
    out: &'a mut [E],
}

impl<E: Element> Work for Row<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (weight, weight_rest) = self.norm.weight.as_chunks::<LANES>();
        let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
        let mut squares = s.splat(0.0);
        for x in x {
            squares = s.fma(s.load(x), s.load(x), squares);
        }
        let mut sum = s.sum(squares);
        for x in x_rest {
            sum += x * x;
        }
        let scale = 1.0 / (sum / self.x.len() as f32 + self.norm.eps).sqrt();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            E::store(s, s.mul(s.mul(s.load(x), s.splat(scale)), s.load(weight)), out);
        }
        for ((x, weight), out) in x_rest.iter().zip(weight_rest).zip(out_rest) {
            *out = E::from_f32(x * scale * weight);
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
        for width in [1, 5, 16, 24, 576, 700] {
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
            }
        }
    }
}
