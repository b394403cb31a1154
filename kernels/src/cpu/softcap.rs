//! Soft caps: values that approach a limit instead of growing beyond it.

use super::{
    pool::ComputePool,
    simd::{LANES, Simd, Work, tanh},
};

/// Values of one task.
const TASK_ELEMENTS: usize = 16 << 10;

/// Every value becomes `cap * tanh(value / cap)`.
pub fn soft_cap(pool: &ComputePool, values: &mut [f32], cap: f32) {
    let tasks = values.chunks_mut(TASK_ELEMENTS).collect();
    pool.for_each(tasks, |values| pool.isa().run(Cap { values, cap }));
}

struct Cap<'a> {
    values: &'a mut [f32],
    cap: f32,
}

impl Work for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (values, rest) = self.values.as_chunks_mut::<LANES>();
        for lanes in values {
            s.store(capped(s, s.load(lanes), 1.0, self.cap), lanes);
        }
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        s.store(capped(s, s.load(&padded), 1.0, self.cap), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// `cap * tanh(scale * value / cap)`
#[inline(always)]
pub(super) fn capped<S: Simd>(s: S, values: S::V, scale: f32, cap: f32) -> S::V {
    s.mul(tanh(s, s.mul(values, s.splat(scale / cap))), s.splat(cap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpu::Isa, reference};

    #[test]
    fn agrees_with_the_formula_with_all_instructions() {
        for len in [1, 16, 40_003] {
            let values: Vec<f32> = (0..len).map(|i| (i as f32 - len as f32 / 2.0) / 100.0).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::supported() {
                let pool = ComputePool::with_isa(2, isa).unwrap();
                let mut found = values.clone();
                soft_cap(&pool, &mut found, 30.0);
                for (found, value) in found.iter().zip(&values) {
                    let expected = reference::soft_cap(*value, 30.0);
                    assert!((found - expected).abs() <= 1e-5, "{value}: {found} is not {expected}");
                }
                assert_eq!(*first.get_or_insert(found.clone()), found, "{isa:?}");
            }
        }
    }
}
