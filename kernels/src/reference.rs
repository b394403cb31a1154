//! Every op in plain scalar Rust, one token or row at a time, for tests of the
//! fast kernels. Nothing here is tuned; everything is read off the formulas.

use crate::{Draw, Shape, shape::List};

/// `x / sqrt(mean of x^2 + eps) * weight`
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

/// Turns one head at `position`: elements `i` and `i + frequencies.len()` by
/// `position * frequencies[i]`, times `magnitude`; the elements after them stay.
pub fn rope(head: &[f32], position: usize, frequencies: &[f32], magnitude: f32) -> Vec<f32> {
    let half = frequencies.len();
    let mut turned = head.to_vec();
    for (i, frequency) in frequencies.iter().enumerate() {
        let angle = position as f32 * frequency;
        let [sin, cos] = [angle.sin() * magnitude, angle.cos() * magnitude];
        turned[i] = head[i] * cos - head[i + half] * sin;
        turned[i + half] = head[i + half] * cos + head[i] * sin;
    }
    turned
}

/// Check word of a frame: the sum over its 32-bit words, each mixed with its place.
pub fn check_word(words: &[u32]) -> u32 {
    let mixed = words.iter().zip(0_u32..).map(|(word, place)| {
        let x = word.wrapping_add(place.wrapping_mul(0x9e37_79b9)).wrapping_add(0x7f4a_7c15);
        let x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
        let x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
        x ^ x >> 16
    });
    mixed.fold(0, u32::wrapping_add)
}

/// `theta ^ (-2 i / dims)` for each `i` below `dims / 2`: what [`rope`] takes for plain models.
pub fn rope_frequencies(dims: usize, theta: f32) -> Vec<f32> {
    (0..dims / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dims as f32)).collect()
}

/// `weights * x`, with `weights` row-major `[out][in]`.
pub fn matmul(weights: &[f32], x: &[f32]) -> Vec<f32> {
    weights.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// A row as e4m3 holds it, with its scale: each element is the nearest e4m3 to `x / scale`,
/// and the scale is the greatest of them over 448, the greatest e4m3; 0 for a row of zeros.
pub fn quantised(x: &[f32]) -> (Vec<f32>, f32) {
    let greatest = x.iter().fold(0.0_f32, |greatest, x| greatest.max(x.abs()));
    if greatest < 1e-30 {
        return (vec![0.0; x.len()], 0.0);
    }
    let inverse = 448.0 / greatest;
    (x.iter().map(|x| e4m3(x * inverse)).collect(), greatest / 448.0)
}

/// The nearest number with three bits behind the first, of 2^-6 to 448 in size or a multiple
/// of 2^-9 below: an OCP 8-bit float of four bits of exponent.
pub fn e4m3(x: f32) -> f32 {
    let size = x.abs().min(448.0);
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-6);
    let step = 2.0_f32.powi(exponent - 3);
    ((size / step).round_ties_even() * step).copysign(x)
}

/// The byte that means `x`, one of the numbers that [`e4m3`] gives: a sign, four bits of exponent,
/// three behind the first.
pub fn e4m3_byte(x: f32) -> u8 {
    let size = x.abs();
    let low = if size < 2.0_f32.powi(-6) {
        (size * 512.0) as u8
    } else {
        // f32's bias of the exponent is 120 more.
        ((size.to_bits() >> 20) - (120 << 3)) as u8
    };
    low | u8::from(x.is_sign_negative()) << 7
}

/// What [`e4m3_byte`] says; not a number where all seven bits are set.
pub fn of_e4m3_byte(byte: u8) -> f32 {
    let (exponent, rest) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = if exponent == 0 { rest / 512.0 } else { (8.0 + rest) * 2.0_f32.powi(exponent - 10) };
    match byte {
        0x7f | 0xff => f32::NAN,
        128.. => -size,
        _ => size,
    }
}

/// A cached row of keys and values in heads of `head_dim` as fp8 pages hold it: each head
/// [`quantised`], all e4m3 before all scales, which are f32 in little-endian order.
pub fn fp8_row(row: &[f32], head_dim: usize) -> Vec<u8> {
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    for head in row.chunks_exact(head_dim) {
        let (elements, scale) = quantised(head);
        bytes.extend(elements.into_iter().map(e4m3_byte));
        scales.extend(scale.to_le_bytes());
    }
    bytes.extend(scales);
    bytes
}

/// The numbers that [`fp8_row`] stands for.
pub fn of_fp8_row(bytes: &[u8], head_dim: usize) -> Vec<f32> {
    let (elements, scales) = bytes.split_at(bytes.len() / (head_dim + 4) * head_dim);
    let heads = elements.chunks_exact(head_dim).zip(scales.as_chunks().0);
    let numbers = |(head, scale): (&[u8], &[u8; 4])| {
        let scale = f32::from_le_bytes(*scale);
        head.iter().map(move |byte| of_e4m3_byte(*byte) * scale).collect::<Vec<_>>()
    };
    heads.flat_map(numbers).collect()
}

/// Attention of one query head over the keys and values that it sees: rows of
/// `q.len()` elements. Scores are `q * key * scale`, capped if there is a cap.
pub fn attention(
    q: &[f32],
    keys: &[&[f32]],
    values: &[&[f32]],
    scale: f32,
    soft_cap: Option<f32>,
) -> Vec<f32> {
    let capped = |score: f32| soft_cap.map_or(score, |cap| self::soft_cap(score, cap));
    let scores: Vec<f32> = keys.iter().map(|key| capped(dot(q, key) * scale)).collect();
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (out, value) in out.iter_mut().zip(*value) {
            *out += weight / sum * value;
        }
    }
    out
}

/// `cap * tanh(x / cap)`
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * (x / cap).tanh()
}

/// `silu(gate) * up`
pub fn silu_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// `gelu(gate) * up`, with GELU's tanh approximation.
pub fn gelu_tanh_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let gelu = |x: f32| {
        let inner =
            std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 * (x + 0.044_715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    gate.iter().zip(up).map(|(gate, up)| gelu(*gate) * up).collect()
}

/// The token that `draw` takes. Weights are exp((logit - greatest) / temperature), the
/// exponent rounded down to one of 2^22 steps from 0 to -24, in 2^-40; tokens are ranked by
/// step, then by id. None when no logit is a number.
pub fn sample(logits: &[f32], draw: &Draw) -> Option<u32> {
    const RANGE: f32 = 24.0;
    const STEPS: f32 = (1 << 22) as f32;
    let usable = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(3.4e38) };
    let peak = logits.iter().copied().map(usable).fold(f32::NEG_INFINITY, f32::max);
    if peak == f32::NEG_INFINITY {
        return None;
    }
    if draw.temperature <= 0.0 {
        return logits.iter().position(|logit| usable(*logit) == peak).map(|id| id as u32);
    }
    let scale = (STEPS / RANGE / draw.temperature).min(1e30);
    let step = |logit: &f32| ((peak - usable(*logit)) * scale).min(STEPS) as usize;
    let weight = |step: usize| {
        let share = (step as f32 * (-RANGE * std::f32::consts::LOG2_E / STEPS)).exp2();
        (share * (1u64 << 40) as f32).round() as u64
    };
    let mut ranked: Vec<(usize, u32)> = logits.iter().map(step).zip(0..).collect();
    ranked.retain(|(step, _)| *step < STEPS as usize);
    ranked.sort_unstable();
    if draw.top_k > 0 {
        ranked.truncate(draw.top_k as usize);
    }
    let sum = |ranked: &[(usize, u32)]| ranked.iter().map(|(step, _)| weight(*step)).sum::<u64>();
    if draw.top_p < 1.0 {
        let target = ((f64::from(draw.top_p.max(0.0)) * sum(&ranked) as f64).ceil() as u64).max(1);
        let mut reached = 0;
        let is_needed = |(step, _): &&(usize, u32)| {
            let before = reached;
            reached += weight(*step);
            before < target
        };
        let needed = ranked.iter().take_while(is_needed).count();
        ranked.truncate(needed);
    }
    if draw.min_p > 0.0 {
        let far = (-draw.min_p.min(1.0).ln() * (STEPS / RANGE)) as usize;
        ranked.retain(|(step, _)| *step <= far);
    }
    let mut left = ((u128::from(sum(&ranked)) * u128::from(draw.share)) >> 64) as u64;
    ranked.sort_unstable_by_key(|(_, id)| *id);
    let uses_up = |(step, _): &&(usize, u32)| {
        let (weight, before) = (weight(*step), left);
        left = left.saturating_sub(weight);
        before < weight
    };
    ranked.iter().find(uses_up).map(|(_, id)| *id)
}

/// Logits as `shape` and its list change them: biases first, then tokens seen so far by how
/// often they are in the answer, then tokens without a bit in `mask`.
pub fn shape(logits: &mut [f32], shape: &Shape, list: List<'_>, mask: Option<&[u32]>) {
    let usable = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
    for (token, bias) in list.biases {
        let logit = &mut logits[*token as usize];
        *logit = usable(*logit) + bias;
    }
    for (token, times) in list.seen {
        let logit = usable(logits[*token as usize]);
        let repeated = if logit > 0.0 { logit / shape.repetition } else { logit * shape.repetition };
        let taken = if *times > 0 { shape.presence + shape.frequency * *times as f32 } else { 0.0 };
        logits[*token as usize] = repeated - taken;
    }
    let Some(mask) = mask else { return };
    for (id, logit) in logits.iter_mut().enumerate() {
        if mask[id / 32] >> (id % 32) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::{e4m3, e4m3_byte, fp8_row, of_e4m3_byte, of_fp8_row, quantised};

    /// All that the format can say from 0 up, by its definition.
    fn sizes() -> Vec<f32> {
        let below_one_power = (0..8).map(|rest| rest as f32 / 512.0);
        let of_power = |power: i32| (8..16).map(move |rest| rest as f32 * 2.0_f32.powi(power - 3));
        below_one_power.chain((-6..=8).flat_map(of_power)).filter(|size| *size <= 448.0).collect()
    }

    #[test]
    fn numbers_become_the_nearest_of_the_format() {
        let sizes = sizes();
        assert_eq!(sizes.len(), 127);
        for (index, pair) in sizes.windows(2).enumerate() {
            let (low, high, middle) = (pair[0], pair[1], f32::midpoint(pair[0], pair[1]));
            // In the middle the one whose last bit is zero.
            let even = if index % 2 == 0 { low } else { high };
            for sign in [1.0, -1.0] {
                assert_eq!(e4m3(sign * low), sign * low);
                assert_eq!(e4m3(sign * middle), sign * even);
                assert_eq!(e4m3(sign * middle.next_down()), sign * low);
                assert_eq!(e4m3(sign * middle.next_up()), sign * high);
            }
        }
        assert_eq!([e4m3(448.0), e4m3(-1e9)], [448.0, -448.0]);
    }

    #[test]
    fn every_byte_is_a_number_of_the_format_and_back() {
        for (byte, size) in (0..).zip(sizes()) {
            assert_eq!([of_e4m3_byte(byte), of_e4m3_byte(byte | 128)], [size, -size]);
            assert_eq!([e4m3_byte(size), e4m3_byte(-size)], [byte, byte | 128]);
        }
        assert!(of_e4m3_byte(0x7f).is_nan() && of_e4m3_byte(0xff).is_nan());
    }

    #[test]
    fn scales_stand_behind_the_heads_of_a_row() {
        let bytes = fp8_row(&[4.48, -2.24, 0.0, 0.0], 2);
        assert_eq!(bytes[..4], [0x7e, 0xf6, 0, 0]);
        assert_eq!(bytes[4..], [0.01_f32.to_le_bytes(), [0; 4]].concat());
        let numbers = of_fp8_row(&bytes, 2);
        assert!(
            numbers.iter().zip([4.48, -2.24, 0.0, 0.0]).all(|(x, y)| (x - y).abs() < 1e-6),
            "{numbers:?}"
        );
    }

    #[test]
    fn the_greatest_of_a_row_is_the_greatest_of_the_format() {
        assert_eq!(quantised(&[1.0, -4.0, 0.0]), (vec![112.0, -448.0, 0.0], 4.0 / 448.0));
        assert_eq!(quantised(&[0.0, -0.0]), (vec![0.0, 0.0], 0.0));
    }
}
