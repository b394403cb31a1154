//! Every op in plain scalar Rust, one token or row at a time, for tests of the
//! fast kernels. Nothing here is tuned; everything is read off the formulas.

/// `x / sqrt(mean of x^2 + eps) * weight`
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

/// Turns one head at `position`: elements `i` and `i + head_dim / 2` by
/// `position / theta^(2 i / head_dim)`.
pub fn rope(head: &[f32], position: usize, theta: f32) -> Vec<f32> {
    let half = head.len() / 2;
    let mut turned = head.to_vec();
    for i in 0..half {
        let angle = position as f32 / theta.powf((2 * i) as f32 / head.len() as f32);
        let (sin, cos) = angle.sin_cos();
        turned[i] = head[i] * cos - head[i + half] * sin;
        turned[i + half] = head[i + half] * cos + head[i] * sin;
    }
    turned
}

/// `weights * x`, with `weights` row-major `[out][in]`.
pub fn matmul(weights: &[f32], x: &[f32]) -> Vec<f32> {
    weights.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

/// Attention of one query head over the keys and values it sees: rows of
/// `q.len()` elements, the last of which is the query's own position.
pub fn attention(q: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f32> {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let scores: Vec<f32> = keys.iter().map(|key| dot(q, key) * scale).collect();
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

/// `silu(gate) * up`
pub fn silu_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
