//! Names and shapes of tensors in both formats.

use std::collections::HashSet;

use super::Family;
use crate::{
    config::{ModelConfig, Norms, QkNorm},
    error::FormatError,
    weights::Weights,
};

/// A tensor of every layer.
struct Tensor {
    gguf: &'static str,
    hugging_face: &'static str,
    /// As `[out, in]`.
    shape: fn(&ModelConfig) -> Vec<usize>,
}

/// A tensor that files hold in one piece and the engine asks for in several.
struct Fused {
    gguf: &'static str,
    hugging_face: &'static str,
    /// Row after row.
    parts: &'static [&'static str],
}

const PROJECTIONS: [Tensor; 7] = [
    tensor("attn_q.weight", "self_attn.q_proj.weight", |config| vec![queries(config), config.hidden]),
    tensor("attn_k.weight", "self_attn.k_proj.weight", |config| vec![keys(config), config.hidden]),
    tensor("attn_v.weight", "self_attn.v_proj.weight", |config| vec![keys(config), config.hidden]),
    tensor("attn_output.weight", "self_attn.o_proj.weight", |config| vec![config.hidden, queries(config)]),
    tensor("ffn_gate.weight", "mlp.gate_proj.weight", |config| vec![config.intermediate, config.hidden]),
    tensor("ffn_up.weight", "mlp.up_proj.weight", |config| vec![config.intermediate, config.hidden]),
    tensor("ffn_down.weight", "mlp.down_proj.weight", |config| vec![config.hidden, config.intermediate]),
];

const QKV_BIAS: [Tensor; 3] = [
    tensor("attn_q.bias", "self_attn.q_proj.bias", |config| vec![queries(config)]),
    tensor("attn_k.bias", "self_attn.k_proj.bias", |config| vec![keys(config)]),
    tensor("attn_v.bias", "self_attn.v_proj.bias", |config| vec![keys(config)]),
];

const Q_NORM: (&str, &str) = ("attn_q_norm.weight", "self_attn.q_norm.weight");
const K_NORM: (&str, &str) = ("attn_k_norm.weight", "self_attn.k_norm.weight");

const HEAD_NORMS: [Tensor; 2] = [
    tensor(Q_NORM.0, Q_NORM.1, |config| vec![config.head_dim]),
    tensor(K_NORM.0, K_NORM.1, |config| vec![config.head_dim]),
];

const ROW_NORMS: [Tensor; 2] = [
    tensor(Q_NORM.0, Q_NORM.1, |config| vec![queries(config)]),
    tensor(K_NORM.0, K_NORM.1, |config| vec![keys(config)]),
];

const NORMS_BEFORE: [Tensor; 2] = [
    norm("attn_norm.weight", "input_layernorm.weight"),
    norm("ffn_norm.weight", "post_attention_layernorm.weight"),
];

const NORMS_AFTER: [Tensor; 2] = [
    norm("post_attention_norm.weight", "post_attention_layernorm.weight"),
    norm("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
];

const NORMS_AROUND: [Tensor; 4] = [
    norm("attn_norm.weight", "input_layernorm.weight"),
    norm("post_attention_norm.weight", "post_attention_layernorm.weight"),
    norm("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    norm("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
];

const FUSED: [Fused; 2] = [
    Fused {
        gguf: "attn_qkv.weight",
        hugging_face: "self_attn.qkv_proj.weight",
        parts: &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    },
    Fused {
        gguf: "ffn_up.weight",
        hugging_face: "mlp.gate_up_proj.weight",
        parts: &["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    },
];

/// Tensors outside layers: GGUF name, Hugging Face name.
const WHOLE: [(&str, &str); 3] =
    [("token_embd.weight", EMBEDDING), ("output_norm.weight", LAST_NORM), (GGUF_OUTPUT, OUTPUT)];

const EMBEDDING: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";
/// The output projection, absent if it is the embedding.
const OUTPUT: &str = "lm_head.weight";
/// The output projection in a GGUF file.
pub const GGUF_OUTPUT: &str = "output.weight";

const fn tensor(
    gguf: &'static str,
    hugging_face: &'static str,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Tensor {
    Tensor { gguf, hugging_face, shape }
}

const fn norm(gguf: &'static str, hugging_face: &'static str) -> Tensor {
    tensor(gguf, hugging_face, |config| vec![config.hidden])
}

fn queries(config: &ModelConfig) -> usize {
    config.heads * config.head_dim
}

fn keys(config: &ModelConfig) -> usize {
    config.kv_heads * config.head_dim
}

/// The tensors of a layer, as the engine asks for them.
fn of_layer(config: &ModelConfig) -> Vec<&'static Tensor> {
    let norms: &[Tensor] = match config.norms {
        Norms::Before => &NORMS_BEFORE,
        Norms::After => &NORMS_AFTER,
        Norms::Around => &NORMS_AROUND,
    };
    let qk_norms: &[Tensor] = match config.qk_norm {
        QkNorm::None => &[],
        QkNorm::Head => &HEAD_NORMS,
        QkNorm::Row => &ROW_NORMS,
    };
    let biases: &[Tensor] = if config.qkv_bias { &QKV_BIAS } else { &[] };
    norms.iter().chain(&PROJECTIONS).chain(biases).chain(qk_norms).collect()
}

/// The Hugging Face name of a tensor of a GGUF file.
pub fn hugging_face_name(family: &Family, config: &ModelConfig, gguf: &str) -> Option<String> {
    if let Some((_, name)) = WHOLE.iter().find(|(whole, _)| *whole == gguf) {
        return Some((*name).to_owned());
    }
    let (layer, suffix) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let fused = FUSED.iter().filter(|_| family.fused).find(|fused| fused.gguf == suffix);
    let name = match fused {
        Some(fused) => fused.hugging_face,
        None => of_layer(config).into_iter().find(|tensor| tensor.gguf == suffix)?.hugging_face,
    };
    // A number written in another way ("01", "+1") would make two names of one tensor.
    let number: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    Some(format!("model.layers.{number}.{name}"))
}

/// Splits what the family fuses, and checks that every tensor is there in its
/// shape and that nothing is there that would change the result. What is left is what is used.
pub fn arrange(family: &Family, config: &ModelConfig, weights: &mut Weights) -> Result<(), FormatError> {
    if family.fused {
        split(config, weights)?;
    }
    let mut used = HashSet::new();
    for (tensor, expected) in shapes(config) {
        match weights.shape(&tensor) {
            None => return Err(FormatError::MissingTensor { tensor }),
            Some(found) if found != expected => {
                return Err(FormatError::Shape { tensor, found: found.to_vec(), expected });
            }
            Some(_) => used.insert(tensor),
        };
    }
    let idle =
        |name: &str| name.ends_with("rotary_emb.inv_freq") || (name == OUTPUT && config.tied_embeddings);
    let unknown = weights.names().find(|name| !used.contains(*name) && !idle(name)).map(str::to_owned);
    if let Some(tensor) = unknown {
        return Err(FormatError::UnknownTensor { tensor, architecture: family.hugging_face });
    }
    weights.keep(|name| used.contains(name));
    Ok(())
}

fn split(config: &ModelConfig, weights: &mut Weights) -> Result<(), FormatError> {
    for layer in 0..config.layers {
        for fused in &FUSED {
            let parts = fused.parts.iter().map(|part| {
                let of_part = PROJECTIONS.iter().find(|tensor| tensor.hugging_face == *part);
                let shape = of_part.map(|tensor| (tensor.shape)(config)).unwrap_or_default();
                (format!("model.layers.{layer}.{part}"), shape)
            });
            weights.split_rows(&format!("model.layers.{layer}.{}", fused.hugging_face), parts.collect())?;
        }
    }
    Ok(())
}

/// Every tensor that the engine asks for.
fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        (EMBEDDING.to_owned(), vec![config.vocab, config.hidden]),
        (LAST_NORM.to_owned(), vec![config.hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push((OUTPUT.to_owned(), vec![config.vocab, config.hidden]));
    }
    let tensors = of_layer(config);
    for layer in 0..config.layers {
        let of_layer = tensors
            .iter()
            .map(|tensor| (format!("model.layers.{layer}.{}", tensor.hugging_face), (tensor.shape)(config)));
        shapes.extend(of_layer);
    }
    shapes
}
