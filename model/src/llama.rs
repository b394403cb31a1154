//! The llama architecture: names and shapes of its tensors.

use crate::{config::ModelConfig, error::FormatError, weights::Weights};

/// Name of the architecture in both file formats.
pub const NAME: &str = "llama";

/// Tensors of one layer: suffix of the GGUF name, suffix of the Hugging Face name.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// Tensors outside layers: GGUF name, Hugging Face name.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    (GGUF_OUTPUT, OUTPUT),
];

/// The output projection, absent if it is the embedding.
pub const OUTPUT: &str = "lm_head.weight";
/// The output projection in a GGUF file.
pub const GGUF_OUTPUT: &str = "output.weight";

/// The Hugging Face name of a tensor of a GGUF file.
pub fn hugging_face_name(gguf: &str) -> Option<String> {
    if let Some((_, name)) = WHOLE.iter().find(|(whole, _)| *whole == gguf) {
        return Some((*name).to_owned());
    }
    let (layer, suffix) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (_, name) = LAYER.iter().find(|(tensor, _)| *tensor == suffix)?;
    // A number written in another way ("01", "+1") would make two names of one tensor.
    let number: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    Some(format!("model.layers.{number}.{name}"))
}

/// Checks that every tensor is there in its shape, and that nothing is there that changes the result.
pub fn check(config: &ModelConfig, weights: &Weights) -> Result<(), FormatError> {
    let mut used = std::collections::HashSet::new();
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
    match weights.names().find(|name| !used.contains(*name) && !idle(name)) {
        Some(tensor) => Err(FormatError::UnknownTensor { tensor: tensor.to_owned(), architecture: NAME }),
        None => Ok(()),
    }
}

/// Shapes as `[out, in]`.
fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let ModelConfig { hidden, intermediate, vocab, .. } = *config;
    let queries = config.heads * config.head_dim;
    let keys = config.kv_heads * config.head_dim;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push((OUTPUT.to_owned(), vec![vocab, hidden]));
    }
    for layer in 0..config.layers {
        for (_, name) in LAYER {
            let shape = match name {
                "self_attn.q_proj.weight" => vec![queries, hidden],
                "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => vec![keys, hidden],
                "self_attn.o_proj.weight" => vec![hidden, queries],
                "mlp.gate_proj.weight" | "mlp.up_proj.weight" => vec![intermediate, hidden],
                "mlp.down_proj.weight" => vec![hidden, intermediate],
                _ => vec![hidden],
            };
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    shapes
}
