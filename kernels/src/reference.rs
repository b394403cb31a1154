//! Every op in plain scalar Rust, one token or row at a time, for tests of the
//! fast kernels. Nothing here is tuned; everything is read off the formulas.

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

/// `theta ^ (-2 i / dims)` for each `i` below `dims / 2`: what [`rope`] takes for plain models.
pub fn rope_frequencies(dims: usize, theta: f32) -> Vec<f32> {
    (0..dims / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dims as f32)).collect()
}

/// `weights * x`, with `weights` row-major `[out][in]`.
pub fn matmul(weights: &[f32], x: &[f32]) -> Vec<f32> {
    weights.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
