//! Nonlinearities of a gate.

use std::f32::consts::LOG2_E;

use super::simd::{Simd, exp2};

/// Nonlinearity of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// GELU by its tanh approximation: `x / 2 * (1 + tanh(√(2/π) * (x + 0.044715 x³)))`.
    GeluTanh,
}

// === impl Activation ===

impl Activation {
    #[inline(always)]
    pub(super) fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        /// `2 * √(2/π)`: the sigmoid of `2u` is `(1 + tanh u) / 2`, without its cancellation.
        const STEEPNESS: f32 = 1.595_769;
        let exponent = match self {
            Self::Silu => s.mul(x, s.splat(-LOG2_E)),
            Self::GeluTanh => {
                let inner = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
                s.mul(s.mul(x, inner), s.splat(-LOG2_E * STEEPNESS))
            }
        };
        s.div(x, s.add(s.splat(1.0), exp2(s, exponent)))
    }
}
