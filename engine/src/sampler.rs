//! Logits to a token. Pure: the same logits, history, seed, choice and
//! position give the same token on every node.
//!
//! - `shape`: what is done to logits first: biases, penalties, masks

mod shape;

use std::cmp::Ordering;

use baton_protocol::{PromptToken, Sampling, TopLogprob};
use rayon::prelude::*;

use crate::batch;
pub(crate) use shape::{History, is_shaping};

/// Logits that are compared or added at a time, and those of which the best is searched.
const LANES: usize = 16;
const BLOCK: usize = 1024;
/// Tokens of a word of a mask.
const WORD: usize = 32;

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
    /// Tokens that may be drawn, if not all: bit `token % 32` of word `token / 32`.
    pub mask: Option<&'a [u32]>,
}

/// Draws the next token. None when no token can be drawn: the model returned
/// no usable logit.
///
/// Order: logit bias, penalties, mask, temperature, top-k, top-p, min-p, draw.
/// Ties go to the lowest id.
pub fn draw(logits: &[f32], draw: &Draw<'_>) -> Option<u32> {
    let sampling = draw.sampling;
    if sampling.temperature <= 0.0 {
        return likeliest_shaped(logits, draw);
    }
    let shaped = shaped(logits, draw);
    let logits = shaped.as_deref().unwrap_or(logits);
    let best = greatest(logits)?;
    let peak = usable(logits[best as usize]);
    let weight = |&logit: &f32| exp((usable(logit) - peak) / sampling.temperature);
    let weights: Vec<f32> = logits.iter().map(weight).collect();
    let position = (draw.tokens.len() - draw.prompt_tokens) as u64;
    let uniform = uniform(sampling.seed, draw.choice, position);
    let is_filtered = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    if is_filtered { pick(&candidates(&weights, sampling), uniform) } else { pick_any(&weights, uniform) }
}

/// What a backend needs for a draw, besides its [`Shape`](batch::Shape).
pub(crate) fn plain(sampling: &Sampling, choice: u32, position: u64) -> batch::Draw {
    if sampling.temperature <= 0.0 {
        return batch::Draw::LIKELIEST;
    }
    batch::Draw {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        share: key(sampling.seed, choice, position),
        ..batch::Draw::LIKELIEST
    }
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

/// How likely `tokens` are under the rows of `vocab` logits before them, one each.
pub(crate) fn prompt_tokens(logits: &[f32], vocab: usize, tokens: &[u32], top: u32) -> Vec<PromptToken> {
    let rows = logits.par_chunks_exact(vocab.max(1)).zip(tokens);
    rows.map(|(row, token)| prompt_token(row, *token, top as usize)).collect()
}

fn prompt_token(logits: &[f32], token: u32, top: usize) -> PromptToken {
    let own = usable(logits[token as usize]);
    let likelier = logits.iter().filter(|logit| usable(**logit) > own).count();
    let (logprob, top) = logprobs(logits, token, top);
    PromptToken { logprob, rank: likelier as u32 + 1, top }
}

/// NaN is never drawn; infinities would make others NaN.
fn usable(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// The logits that a token is drawn from, where they are not those of the model.
fn shaped(logits: &[f32], draw: &Draw<'_>) -> Option<Vec<f32>> {
    let is_shaping = is_shaping(draw.sampling);
    if !is_shaping && draw.mask.is_none() {
        return None;
    }
    let mut logits: Vec<f32> = logits.iter().map(|&logit| usable(logit)).collect();
    if is_shaping {
        History::of(draw.sampling, draw.tokens, draw.prompt_tokens).shape(draw.sampling, &mut logits);
    }
    if let Some(mask) = draw.mask {
        shape::forbid(mask, &mut logits);
    }
    Some(logits)
}

/// The likeliest token once its row is shaped. A step waits for it: under a mask alone the row is not copied.
pub(crate) fn likeliest_shaped(logits: &[f32], draw: &Draw<'_>) -> Option<u32> {
    match draw.mask {
        Some(mask) if !is_shaping(draw.sampling) => greatest_of(logits, mask),
        _ => greatest(shaped(logits, draw).as_deref().unwrap_or(logits)),
    }
}

/// The lowest id of the greatest logit that is [`usable`]. A row is read once,
/// a few lanes at a time, and of its blocks only the best is searched.
pub(crate) fn greatest(logits: &[f32]) -> Option<u32> {
    let (mut best, mut place) = (f32::NEG_INFINITY, None);
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        let peak = usable(peak(block));
        if peak > best {
            (best, place) = (peak, Some(index * BLOCK));
        }
    }
    let start = place?;
    let offset = logits[start..].iter().position(|logit| *logit >= best)?;
    Some((start + offset) as u32)
}

/// As [`greatest`], of the tokens that a mask has a bit of.
fn greatest_of(logits: &[f32], mask: &[u32]) -> Option<u32> {
    let (mut best, mut found) = (f32::NEG_INFINITY, None);
    for (index, (block, &word)) in logits.chunks(WORD).zip(mask).enumerate() {
        let peak = if word == 0 { f32::NEG_INFINITY } else { usable(peak_of(block, word)) };
        if peak > best {
            (best, found) = (peak, Some((index * WORD, block, word)));
        }
    }
    let (start, block, word) = found?;
    let is_best = |(bit, logit): (usize, &f32)| word >> bit & 1 == 1 && *logit >= best;
    Some((start + block.iter().enumerate().position(is_best)?) as u32)
}

/// As [`peak`], of the logits of a word's bits.
fn peak_of(block: &[f32], word: u32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (part, shift) in block.chunks(LANES).zip((0..).step_by(LANES)) {
        for (bit, (lane, &logit)) in lanes.iter_mut().zip(part).enumerate() {
            let is_greater = word >> (shift + bit) & 1 == 1 && logit > *lane;
            *lane = if is_greater { logit } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The greatest of a block, NaN left out.
fn peak(block: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for part in block.chunks(LANES) {
        for (lane, &logit) in lanes.iter_mut().zip(part) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// e to the power of `x`, which is not above 0; exactly 1 for 0, and 0 below
/// -87. Our own, so that every machine draws the same: within 1e-5 of the value.
fn exp(x: f32) -> f32 {
    /// Adding it leaves an integer in the last bits.
    const ROUND: f32 = 12_582_912.0;
    let power = (x * std::f32::consts::LOG2_E).max(-126.0);
    let rounded = power + ROUND;
    let rest = (power - (rounded - ROUND)) * std::f32::consts::LN_2;
    let whole = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    let scale = f32::from_bits(whole.wrapping_add(127) << 23);
    // Taylor's, for |rest| below 0.35.
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let value = series.into_iter().fold(1.0 / 5040.0, |sum, factor| sum * rest + factor) * scale;
    if x < -87.0 { 0.0 } else { value }
}

/// In one order on every machine, which may be several lanes at a time.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    for part in weights.chunks(LANES) {
        for (lane, &weight) in lanes.iter_mut().zip(part) {
            *lane += f64::from(weight);
        }
    }
    lanes.into_iter().sum()
}

/// What top-k, top-p and min-p leave, in order of id, with weights relative to the likeliest (1).
fn candidates(weights: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let (top_k, top_p) = (sampling.top_k as usize, f64::from(sampling.top_p.max(0.0)));
    let (mut kept, whole) = if (1..weights.len()).contains(&top_k) {
        let kept = likeliest(at_least(weights, 0.0), top_k);
        let whole = kept.iter().map(|(_, weight)| weight).sum();
        (kept, whole)
    } else {
        let whole: f64 = weights.chunks(BLOCK).map(sum).sum();
        // Tokens so unlikely that all of them together are not needed: saves most of the sort.
        let negligible = (whole - top_p.min(1.0) * whole) / weights.len() as f64 * 0.5;
        (at_least(weights, negligible), whole)
    };
    if top_p < 1.0 {
        kept.sort_unstable_by(by_rank);
        let mut reached = 0.0;
        let needed = kept.iter().take_while(|(_, weight)| {
            let is_needed = reached < top_p * whole;
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

/// Tokens of some weight, and of this at least.
fn at_least(weights: &[f32], least: f64) -> Vec<(u32, f64)> {
    let all = (0..).zip(weights).map(|(id, weight)| (id, f64::from(*weight)));
    all.filter(|(_, weight)| *weight > 0.0 && *weight >= least).collect()
}

/// The `count` likeliest, in order of id: sums must not depend on how the selection left them.
fn likeliest(mut tokens: Vec<(u32, f64)>, count: usize) -> Vec<(u32, f64)> {
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, by_rank);
        tokens.truncate(count);
        tokens.sort_unstable_by_key(|(id, _)| *id);
    }
    tokens
}

fn by_rank(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Inverts the cumulative distribution of the candidates.
fn pick(kept: &[(u32, f64)], uniform: f64) -> Option<u32> {
    let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
    use_up(kept.iter().copied(), uniform * sum)
}

/// As [`pick`], of all tokens: first the block, then the token in it.
fn pick_any(weights: &[f32], uniform: f64) -> Option<u32> {
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut left = uniform * sums.iter().sum::<f64>();
    let mut place = 0;
    for (index, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        place = index;
        if left < *sum {
            break;
        }
        left -= sum;
    }
    let start = place * BLOCK;
    let block = (start as u32..).zip(weights[start..].iter().take(BLOCK).map(|weight| f64::from(*weight)));
    use_up(block.filter(|(_, weight)| *weight > 0.0), left)
}

/// The first token whose weight uses up what is left, or the last one.
fn use_up(weights: impl Iterator<Item = (u32, f64)>, mut left: f64) -> Option<u32> {
    let mut last = None;
    for (id, weight) in weights {
        last = Some(id);
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// A number in [0, 1) that depends on nothing but its key.
fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    (key(seed, choice, position) >> 11) as f64 / (1u64 << 53) as f64
}

fn key(seed: u64, choice: u32, position: u64) -> u64 {
    mix(mix(mix(seed) ^ u64::from(choice)) ^ position)
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
