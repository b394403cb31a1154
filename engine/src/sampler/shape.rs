//! What is done to logits before a token is drawn from them.

use std::collections::BTreeMap;

use baton_protocol::Sampling;

/// What a request's biases and penalties change, no token twice in either.
#[derive(Debug, PartialEq)]
pub(crate) struct History {
    /// Tokens, and what is added to their logits.
    pub(crate) biases: Vec<(u32, f32)>,
    /// Tokens seen so far, and how often each is in the answer; none without penalties.
    pub(crate) seen: Vec<(u32, u32)>,
}

/// Whether a request changes logits by what it says or by what was said.
pub(crate) fn is_shaping(sampling: &Sampling) -> bool {
    !sampling.logit_bias.is_empty() || has_penalties(sampling)
}

fn has_penalties(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0
}

// === impl History ===

impl History {
    /// After `tokens`, of which so many are the prompt.
    pub(crate) fn of(sampling: &Sampling, tokens: &[u32], prompt_tokens: usize) -> Self {
        let mut biases: BTreeMap<u32, f32> = BTreeMap::new();
        for entry in &sampling.logit_bias {
            *biases.entry(entry.token).or_default() += entry.bias;
        }
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        let tokens = if has_penalties(sampling) { tokens } else { &[] };
        for (position, &token) in tokens.iter().enumerate() {
            *seen.entry(token).or_default() += u32::from(position >= prompt_tokens);
        }
        Self { biases: biases.into_iter().collect(), seen: seen.into_iter().collect() }
    }

    /// As kernels take it.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn list(&self) -> baton_kernels::shape::List<'_> {
        baton_kernels::shape::List { biases: &self.biases, seen: &self.seen }
    }

    /// Adds biases, and makes tokens that were there before less likely.
    pub(super) fn shape(&self, sampling: &Sampling, logits: &mut [f32]) {
        for &(token, bias) in &self.biases {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for &(token, times) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            *logit = if *logit > 0.0 {
                *logit / sampling.repetition_penalty
            } else {
                *logit * sampling.repetition_penalty
            };
            if times > 0 {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * times as f32;
            }
        }
    }
}

/// Leaves only tokens that the mask has a bit of.
pub(super) fn forbid(mask: &[u32], logits: &mut [f32]) {
    for (word, logits) in mask.iter().zip(logits.chunks_mut(32)) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}
