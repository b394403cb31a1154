//! Logits to a token. Pure: the same logits, history, seed, choice and
//! position give the same token on every node.

use std::collections::HashMap;

use baton_protocol::{Sampling, TopLogprob};

/// Everything a draw depends on besides the logits.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// How to draw.
    pub sampling: &'a Sampling,
    /// Keys the generator, with the seed and the position.
    pub choice: u32,
    /// Prompt and answer so far.
    pub tokens: &'a [u32],
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// Tokens that must not be drawn now (stop tokens before `min_tokens`).
    pub banned: &'a [u32],
}

/// Draws the next token. None when no token can be drawn: the model returned
/// no usable logit.
///
/// Order: logit bias, penalties, temperature, top-k, top-p, min-p, draw. Ties
/// go to the lowest id.
pub fn draw(logits: &[f32], draw: &Draw<'_>) -> Option<u32> {
    let sampling = draw.sampling;
    let mut logits: Vec<f32> = logits.iter().map(|&logit| usable(logit)).collect();
    shape(&mut logits, draw);
    let best = greatest(&logits)?;
    if sampling.temperature <= 0.0 {
        return Some(best);
    }
    let peak = logits[best as usize];
    let weight = |&logit: &f32| f64::from((logit - peak) / sampling.temperature).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let position = (draw.tokens.len() - draw.prompt_tokens) as u64;
    let uniform = uniform(sampling.seed, draw.choice, position);
    pick(candidates(&weights, sampling), uniform)
}

/// Natural log-probabilities under the model, before everything in `Sampling`:
/// that of `token`, and the likeliest `top`, best first.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<TopLogprob>) {
    let usable: Vec<f32> = logits.iter().map(|&logit| usable(logit)).collect();
    let peak = usable.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = usable.iter().map(|&logit| f64::from(logit - peak).exp()).sum();
    let log_sum = f64::from(peak) + sum.ln();
    let logprob = |id: u32| (f64::from(usable[id as usize]) - log_sum) as f32;
    let mut ids: Vec<u32> = (0..usable.len() as u32).collect();
    let top = top.min(ids.len());
    let by_rank = |a: &u32, b: &u32| usable[*b as usize].total_cmp(&usable[*a as usize]).then(a.cmp(b));
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top, by_rank);
    }
    ids.truncate(top);
    ids.sort_unstable_by(by_rank);
    (logprob(token), ids.into_iter().map(|id| TopLogprob { id, logprob: logprob(id) }).collect())
}

/// NaN is never drawn; infinities would make others NaN.
fn usable(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// Applies bias, bans and penalties.
fn shape(logits: &mut [f32], draw: &Draw<'_>) {
    let sampling = draw.sampling;
    for entry in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(entry.token as usize) {
            *logit += entry.bias;
        }
    }
    for &token in draw.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let is_on = sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0;
    if is_on {
        penalize(logits, draw);
    }
    logits.iter_mut().for_each(|logit| *logit = usable(*logit));
}

/// Makes tokens that were there before less likely.
fn penalize(logits: &mut [f32], draw: &Draw<'_>) {
    let sampling = draw.sampling;
    // How often each token seen so far is in the answer.
    let mut seen: HashMap<u32, u32> =
        draw.tokens[..draw.prompt_tokens].iter().map(|&token| (token, 0)).collect();
    for &token in &draw.tokens[draw.prompt_tokens..] {
        *seen.entry(token).or_default() += 1;
    }
    for (token, times) in seen {
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

/// The lowest id of the greatest logit, if any is finite.
fn greatest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<usize> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |best| logits[best]) {
            best = Some(id);
        }
    }
    best.map(|id| id as u32)
}

/// What top-k, top-p and min-p leave, with weights relative to the likeliest (1).
fn candidates(weights: &[f64], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut kept: Vec<(u32, f64)> =
        (0..).zip(weights.iter().copied()).filter(|(_, weight)| *weight > 0.0).collect();
    let by_rank = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let top_k = sampling.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k, by_rank);
        kept.truncate(top_k);
        // Sums below must not depend on how the selection left them.
        kept.sort_unstable_by_key(|(id, _)| *id);
    }
    if sampling.top_p < 1.0 {
        let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let enough = f64::from(sampling.top_p.max(0.0)) * sum;
        // Tokens so unlikely that all of them together are not needed: saves most of the sort.
        let negligible = (sum - enough) / kept.len() as f64 * 0.5;
        kept.retain(|(_, weight)| *weight >= negligible);
        kept.sort_unstable_by(by_rank);
        let mut reached = 0.0;
        let needed = kept.iter().take_while(|(_, weight)| {
            let is_needed = reached < enough;
            reached += weight;
            is_needed
        });
        let needed = needed.count().max(1);
        kept.truncate(needed);
    }
    if sampling.min_p > 0.0 {
        // The likeliest weighs 1 by construction, and always stays.
        kept.retain(|(_, weight)| *weight >= f64::from(sampling.min_p.min(1.0)));
    }
    kept.sort_unstable_by_key(|(id, _)| *id);
    kept
}

/// Inverts the cumulative distribution, in order of id.
fn pick(kept: Vec<(u32, f64)>, uniform: f64) -> Option<u32> {
    let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform * sum;
    let last = kept.last().map(|(id, _)| *id);
    let found = kept.into_iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    found.map(|(id, _)| id).or(last)
}

/// A number in [0, 1) that depends on nothing but its key.
fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    let key = mix(mix(mix(seed) ^ u64::from(choice)) ^ position);
    (key >> 11) as f64 / (1u64 << 53) as f64
}

/// One step of splitmix64.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests;
