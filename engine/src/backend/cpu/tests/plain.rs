//! Small models of every kind, and what they answer, in plain Rust.

use std::collections::HashMap;

use baton_kernels::reference;
use baton_model::{Activation, LayerAttention, ModelConfig, Norms, QkNorm, Rotary, Weights};

/// A plain llama.
pub fn llama() -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        layers: 3,
        hidden: 24,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 48,
        vocab: 50,
        context_tokens: 256,
        attention: vec![LayerAttention { window: None, rotary: Some(0) }; 3],
        rotaries: vec![Rotary::plain(8, 10_000.0)],
        attention_scale: 1.0 / 8.0_f32.sqrt(),
        attention_softcap: None,
        logit_softcap: None,
        qkv_bias: false,
        qk_norm: QkNorm::None,
        norms: Norms::Before,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        rms_eps: 1e-5,
        tied_embeddings: true,
        eos_tokens: vec![0],
        bos_token: None,
    }
}

/// One model for every way in which families differ.
pub fn kinds() -> Vec<(&'static str, ModelConfig)> {
    let window = |window, rotary| LayerAttention { window, rotary };
    let slow = Rotary { frequencies: vec![0.5, 0.02, 0.001], magnitude: 1.25 };
    vec![
        ("plain", llama()),
        ("untied", ModelConfig { tied_embeddings: false, ..llama() }),
        ("biased", ModelConfig { qkv_bias: true, ..llama() }),
        (
            "normed heads, windows",
            ModelConfig {
                qk_norm: QkNorm::Head,
                attention: vec![window(Some(3), Some(0)), window(None, Some(0)), window(Some(17), Some(0))],
                ..llama()
            },
        ),
        ("norms after", ModelConfig { qk_norm: QkNorm::Row, norms: Norms::After, ..llama() }),
        (
            "norms around, caps, another scale",
            ModelConfig {
                norms: Norms::Around,
                activation: Activation::GeluTanh,
                attention_softcap: Some(2.0),
                logit_softcap: Some(3.0),
                attention_scale: 0.25,
                embedding_scale: 4.9,
                ..llama()
            },
        ),
        (
            "several rotaries, or none",
            ModelConfig {
                rotaries: vec![Rotary::plain(8, 10_000.0), slow],
                attention: vec![window(None, None), window(Some(20), Some(1)), window(None, Some(0))],
                ..llama()
            },
        ),
        (
            "single key head",
            ModelConfig { kv_heads: 1, heads: 3, qkv_bias: true, qk_norm: QkNorm::Row, ..llama() },
        ),
    ]
}

/// Small numbers that bf16 holds exactly, the same for the same name.
fn values(name: &str, len: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(17_u32, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 25) as f32 / 64.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Names and shapes of all tensors.
pub fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner, dim) = (config.hidden, config.intermediate, config.head_dim);
    let (q, kv) = (config.heads * dim, config.kv_heads * dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab, hidden]));
    }
    let mut parts = vec![
        ("self_attn.q_proj.weight", vec![q, hidden]),
        ("self_attn.k_proj.weight", vec![kv, hidden]),
        ("self_attn.v_proj.weight", vec![kv, hidden]),
        ("self_attn.o_proj.weight", vec![hidden, q]),
        ("mlp.gate_proj.weight", vec![inner, hidden]),
        ("mlp.up_proj.weight", vec![inner, hidden]),
        ("mlp.down_proj.weight", vec![hidden, inner]),
        ("post_attention_layernorm.weight", vec![hidden]),
    ];
    if config.norms != Norms::After {
        parts.push(("input_layernorm.weight", vec![hidden]));
    }
    if config.norms != Norms::Before {
        parts.push(("post_feedforward_layernorm.weight", vec![hidden]));
    }
    if config.norms == Norms::Around {
        parts.push(("pre_feedforward_layernorm.weight", vec![hidden]));
    }
    if config.qkv_bias {
        parts.push(("self_attn.q_proj.bias", vec![q]));
        parts.push(("self_attn.k_proj.bias", vec![kv]));
        parts.push(("self_attn.v_proj.bias", vec![kv]));
    }
    let norms = match config.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => Some([dim, dim]),
        QkNorm::Row => Some([q, kv]),
    };
    if let Some([q, k]) = norms {
        parts.push(("self_attn.q_norm.weight", vec![q]));
        parts.push(("self_attn.k_norm.weight", vec![k]));
    }
    for layer in 0..config.layers {
        shapes.extend(
            parts.iter().map(|(part, shape)| (format!("model.layers.{layer}.{part}"), shape.clone())),
        );
    }
    shapes
}

/// Tensors of these names and shapes.
pub fn weights(shapes: Vec<(String, Vec<usize>)>) -> Weights {
    let named = shapes.into_iter().map(|(name, shape)| {
        let values = values(&name, shape.iter().product());
        (name, shape, values)
    });
    Weights::from_tensors(named).unwrap()
}

/// A model whose every layer is computed by itself, one token after another.
struct Plain<'a> {
    config: &'a ModelConfig,
    tensors: HashMap<String, Vec<f32>>,
}

/// Logits after the last of `tokens`.
pub fn logits(config: &ModelConfig, tokens: &[u32]) -> Vec<f32> {
    plain(config).logits(tokens)
}

/// Rows behind the last norm.
pub fn rows(config: &ModelConfig, tokens: &[u32]) -> Vec<Vec<f32>> {
    plain(config).rows(tokens)
}

fn plain(config: &ModelConfig) -> Plain<'_> {
    let tensors = shapes(config).into_iter().map(|(name, shape)| {
        let values = values(&name, shape.iter().product());
        (name, values)
    });
    Plain { config, tensors: tensors.collect() }
}

impl Plain<'_> {
    fn rows(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let config = self.config;
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for token in tokens {
            let row = &embedding[*token as usize * config.hidden..][..config.hidden];
            rows.push(row.iter().map(|x| x * config.embedding_scale).collect());
        }
        for layer in 0..config.layers {
            self.layer(layer, &mut rows);
        }
        let weights = &self.tensors["model.norm.weight"];
        rows.iter().map(|row| reference::rms_norm(row, weights, config.rms_eps)).collect()
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let config = self.config;
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let last = self.rows(tokens).pop().unwrap();
        let output = self.tensors.get("lm_head.weight").unwrap_or(embedding);
        let logits = reference::matmul(output, &last);
        logits
            .into_iter()
            .map(|x| config.logit_softcap.map_or(x, |cap| reference::soft_cap(x, cap)))
            .collect()
    }

    fn layer(&self, layer: usize, rows: &mut [Vec<f32>]) {
        let [around_attention, around_mlp] = match self.config.norms {
            Norms::Before => [["input", ""], ["post_attention", ""]],
            Norms::After => [["", "post_attention"], ["", "post_feedforward"]],
            Norms::Around => [["input", "post_attention"], ["pre_feedforward", "post_feedforward"]],
        };
        let norm = |which: &str, row: &[f32]| match which {
            "" => row.to_vec(),
            _ => self.normed(&format!("{layer}.{which}_layernorm"), row),
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, row) in rows.iter_mut().enumerate() {
            let normed = norm(around_attention[0], row);
            let q = self.turned(layer, "q", position, &normed);
            keys.push(self.turned(layer, "k", position, &normed));
            values.push(self.projected(layer, "v", &normed));
            let attended = self.attended(layer, &q, &keys, &values);
            let out = self.product(&format!("{layer}.self_attn.o_proj"), &attended);
            add(row, &norm(around_attention[1], &out));
            let normed = norm(around_mlp[0], row);
            let [gate, up] =
                ["gate", "up"].map(|part| self.product(&format!("{layer}.mlp.{part}_proj"), &normed));
            let gated = match self.config.activation {
                Activation::Silu => reference::silu_mul(&gate, &up),
                Activation::GeluTanh => reference::gelu_tanh_mul(&gate, &up),
            };
            let out = self.product(&format!("{layer}.mlp.down_proj"), &gated);
            add(row, &norm(around_mlp[1], &out));
        }
    }

    fn attended(&self, layer: usize, q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let config = self.config;
        let dim = config.head_dim;
        let first = config.attention[layer].window.map_or(0, |window| keys.len().saturating_sub(window));
        let mut attended = Vec::new();
        for (head, q) in q.chunks(dim).enumerate() {
            let at = head / (config.heads / config.kv_heads) * dim..;
            let keys: Vec<_> = keys[first..].iter().map(|row| &row[at.clone()][..dim]).collect();
            let values: Vec<_> = values[first..].iter().map(|row| &row[at.clone()][..dim]).collect();
            let (scale, cap) = (config.attention_scale, config.attention_softcap);
            attended.extend(reference::attention(q, &keys, &values, scale, cap));
        }
        attended
    }

    /// Queries or keys: projected, normed, turned.
    fn turned(&self, layer: usize, part: &str, position: usize, row: &[f32]) -> Vec<f32> {
        let config = self.config;
        let heads = self.projected(layer, part, row);
        let name = format!("{layer}.self_attn.{part}_norm");
        let heads: Vec<f32> = match config.qk_norm {
            QkNorm::None => heads,
            QkNorm::Head => heads.chunks(config.head_dim).flat_map(|head| self.normed(&name, head)).collect(),
            QkNorm::Row => self.normed(&name, &heads),
        };
        let Some(rotary) = config.attention[layer].rotary else { return heads };
        let Rotary { frequencies, magnitude } = &config.rotaries[rotary];
        heads
            .chunks(config.head_dim)
            .flat_map(|head| reference::rope(head, position, frequencies, *magnitude))
            .collect()
    }

    fn projected(&self, layer: usize, part: &str, row: &[f32]) -> Vec<f32> {
        let mut heads = self.product(&format!("{layer}.self_attn.{part}_proj"), row);
        if let Some(bias) = self.tensors.get(&format!("model.layers.{layer}.self_attn.{part}_proj.bias")) {
            add(&mut heads, bias);
        }
        heads
    }

    fn product(&self, name: &str, row: &[f32]) -> Vec<f32> {
        reference::matmul(&self.tensors[&format!("model.layers.{name}.weight")], row)
    }

    fn normed(&self, name: &str, row: &[f32]) -> Vec<f32> {
        reference::rms_norm(row, &self.tensors[&format!("model.layers.{name}.weight")], self.config.rms_eps)
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
