//! Rotary embeddings and the ways to stretch them to longer texts.

use std::f32::consts::TAU;

use crate::{
    config::{Rotary, wrong},
    error::FormatError,
};

/// A rotary embedding as a file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f32,
    /// Elements of a head that turn; all of them if none.
    pub dims: Option<usize>,
    pub scaling: Scaling,
}

/// How frequencies are changed for texts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// All are divided by a factor.
    Linear {
        factor: f32,
    },
    /// Those that turn at least `high` times in `original` tokens stay, those that turn at most
    /// `low` times are divided by a factor, those between change smoothly.
    Llama3 {
        factor: f32,
        low: f32,
        high: f32,
        original: f32,
    },
    /// Alike, along a straight line over the elements of a head.
    Yarn {
        factor: f32,
        original: f32,
        fast: f32,
        slow: f32,
        truncates: bool,
        magnitude: f32,
    },
    /// Each is divided by its own factor: LongRoPE, and what GGUF files have for Llama 3.
    Each {
        factors: Vec<f32>,
        magnitude: f32,
    },
}

// === impl Rope ===

impl Rope {
    /// The frequencies for heads of `head_dim`, which is a checked size.
    pub fn rotary(&self, head_dim: usize) -> Result<Rotary, FormatError> {
        let dims = self.dims.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            return Err(wrong("rope dimensions", &dims, "an even number up to the size of a head"));
        }
        let Rotary { mut frequencies, mut magnitude } = Rotary::plain(dims, self.theta);
        match &self.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => frequencies.iter_mut().for_each(|frequency| *frequency /= factor),
            Scaling::Llama3 { factor, low, high, original } => {
                for frequency in &mut frequencies {
                    let turns = original * *frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
                }
            }
            Scaling::Yarn { factor, magnitude: own, .. } => {
                let (first, last) = self.ramp(dims);
                for (index, frequency) in frequencies.iter_mut().enumerate() {
                    let divided = ((index as f32 - first) / (last - first)).clamp(0.0, 1.0);
                    *frequency = *frequency / factor * divided + *frequency * (1.0 - divided);
                }
                magnitude = *own;
            }
            Scaling::Each { factors, magnitude: own } => {
                if factors.len() != frequencies.len() {
                    let expected = "one for every two elements that turn";
                    return Err(wrong("number of rope factors", &factors.len(), expected));
                }
                frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
                magnitude = *own;
            }
        }
        Ok(Rotary { frequencies, magnitude })
    }

    /// YaRN's elements from which and up to which frequencies change.
    fn ramp(&self, dims: usize) -> (f32, f32) {
        let Scaling::Yarn { original, fast, slow, truncates, .. } = self.scaling else { return (0.0, 1.0) };
        let element = |turns: f32| (dims as f32 * (original / (turns * TAU)).ln()) / (2.0 * self.theta.ln());
        let (first, last) = match truncates {
            true => (element(fast).floor(), element(slow).ceil()),
            false => (element(fast), element(slow)),
        };
        let (first, last) = (first.max(0.0), last.min(dims as f32 - 1.0));
        // Never divide by nothing.
        (first, if first == last { last + 0.001 } else { last })
    }
}

// === impl Scaling ===

impl Scaling {
    /// YaRN's factor of cosines and sines.
    pub fn yarn_magnitude(factor: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }

    /// LongRoPE's factor of cosines and sines.
    pub fn long_magnitude(context: f32, original: f32) -> f32 {
        if context <= original { 1.0 } else { (1.0 + (context / original).ln() / original.ln()).sqrt() }
    }
}
