use std::path::PathBuf;

use serde::Deserialize;

use super::*;
use crate::{LayerAttention, Model, Rotary};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_text: String,
    prompt_ids: Vec<u32>,
}

const CHECKPOINTS: [&str; 14] = [
    "gemma2",
    "gemma3",
    "llama2",
    "llama2-linear",
    "llama3",
    "mistral",
    "olmo2",
    "phi3",
    "phi3-longrope",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "smollm2",
    "smollm3",
];

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/families").join(name)
}

fn load(name: &str) -> Model {
    crate::load(&directory(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The windows of all layers.
fn windows(model: &Model) -> Vec<Option<usize>> {
    model.config.attention.iter().map(|layer| layer.window).collect()
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} is not {expected}");
    }
}

#[test]
fn every_checkpoint_loads_and_every_tensor_is_read() {
    for name in CHECKPOINTS {
        let Model { config, weights, text, .. } = load(name);
        for tensor in weights.names() {
            match weights.shape(tensor).unwrap().len() {
                1 => drop(weights.vector(tensor).unwrap()),
                _ => drop(weights.matrix(tensor).unwrap()),
            }
        }
        let json = std::fs::read(directory(name).join("golden.json")).unwrap();
        let golden: Golden = serde_json::from_slice(&json).unwrap();
        for case in golden.cases {
            assert_eq!(text.encode(&case.prompt_text, false).unwrap(), case.prompt_ids, "{name}");
        }
        assert_eq!((config.vocab, config.hidden), (320, 32), "{name}");
        assert_eq!(config.attention.len(), config.layers, "{name}");
    }
}

#[test]
fn every_directory_of_the_goldens_is_tested() {
    let entries = std::fs::read_dir(directory("")).unwrap().map(|entry| entry.unwrap());
    let mut found: Vec<String> = entries
        .filter(|entry| entry.path().join("config.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, CHECKPOINTS);
}

#[test]
fn families_have_their_rows() {
    for (checkpoint, norms, qk_norm, activation, qkv_bias) in [
        ("llama3", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("mistral", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("qwen2", Norms::Before, QkNorm::None, Activation::Silu, true),
        ("qwen3", Norms::Before, QkNorm::Head, Activation::Silu, false),
        ("gemma2", Norms::Around, QkNorm::None, Activation::GeluTanh, false),
        ("gemma3", Norms::Around, QkNorm::Head, Activation::GeluTanh, false),
        ("phi3", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("smollm3", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("olmo2", Norms::After, QkNorm::Row, Activation::Silu, false),
    ] {
        let config = load(checkpoint).config;
        let found = (config.norms, config.qk_norm, config.activation, config.qkv_bias);
        assert_eq!(found, (norms, qk_norm, activation, qkv_bias), "{checkpoint}");
    }
}

#[test]
fn windows_are_where_the_family_has_them() {
    let some = Some(8);
    assert_eq!(windows(&load("llama3")), [None; 4]);
    assert_eq!(windows(&load("mistral")), [some; 4]);
    assert_eq!(windows(&load("qwen2")), [None; 4]);
    assert_eq!(windows(&load("qwen2-window")), [None, None, some, some]);
    assert_eq!(windows(&load("gemma2")), [some, None, some, None]);
    assert_eq!(windows(&load("gemma3")), [some, some, some, some, some, None, some]);
    assert_eq!(windows(&load("phi3")), [some; 4]);
    assert_eq!(windows(&load("smollm3")), [None; 4]);
    assert_eq!(windows(&load("olmo2")), [None; 4]);
}

#[test]
fn some_layers_turn_differently() {
    let gemma = load("gemma3").config;
    let mut global = Rotary::plain(16, 1_000_000.0);
    global.frequencies.iter_mut().for_each(|frequency| *frequency /= 8.0);
    assert_eq!(gemma.rotaries, [global, Rotary::plain(16, 10_000.0)]);
    assert_eq!(gemma.attention[4], LayerAttention { window: Some(8), rotary: Some(1) });
    assert_eq!(gemma.attention[5], LayerAttention { window: None, rotary: Some(0) });
    let rotaries: Vec<_> = load("smollm3").config.attention.iter().map(|layer| layer.rotary).collect();
    assert_eq!(rotaries, [Some(0), Some(0), Some(0), None]);
}

#[test]
fn gemma_has_its_scales_and_caps() {
    let config = load("gemma2").config;
    assert_eq!((config.attention_softcap, config.logit_softcap), (Some(5.0), Some(12.0)));
    assert_eq!(config.attention_scale, 1.0 / 24f32.sqrt());
    assert_eq!(config.embedding_scale, 32f32.sqrt());
    assert!(config.tied_embeddings);
    let config = load("gemma3").config;
    assert_eq!((config.attention_softcap, config.logit_softcap), (None, None));
}

/// Norm weights of Gemma's safetensors lack 1.
#[test]
fn norm_weights_are_factors() {
    let plain = load("llama3").weights.vector("model.layers.0.input_layernorm.weight").unwrap();
    let gemma = load("gemma3").weights;
    for weights in [
        plain,
        gemma.vector("model.layers.0.pre_feedforward_layernorm.weight").unwrap(),
        gemma.vector("model.layers.0.self_attn.q_norm.weight").unwrap(),
    ] {
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        assert!((0.5..1.5).contains(&mean), "{mean}");
    }
}

#[test]
fn fused_tensors_are_split() {
    let Model { config, weights, .. } = load("phi3-longrope");
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (2, 1, 16));
    let bytes = std::fs::read(directory("phi3-longrope").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (fused, parts) in [
        ("self_attn.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].as_slice()),
        ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
    ] {
        let name = |part: &str| format!("model.layers.3.{part}.weight");
        let parts = parts.iter().flat_map(|part| weights.matrix(&name(part)).unwrap().values);
        let parts: Vec<u8> = parts.flat_map(half::bf16::to_le_bytes).collect();
        assert_eq!(parts, file.tensor(&name(fused)).unwrap().data(), "{fused}");
        assert!(weights.shape(&name(fused)).is_none());
    }
}

#[test]
fn unknown_architectures_are_refused_by_name() {
    for name in ["mixtral", "qwen2_moe", "gemma3", "gemma3n", "llama4", "deepseek_v3", "phimoe", "(none)"] {
        let message = Family::of_hugging_face(name).unwrap_err().to_string();
        assert!(message.starts_with(&format!("architecture `{name}` is not supported")), "{message}");
        assert!(message.contains("gemma3_text, phi3, smollm3, olmo2"), "{message}");
    }
    assert!(Family::of_gguf("qwen2moe").is_err());
    // A safetensors name is none of a GGUF file.
    assert!(Family::of_gguf("mistral").is_err());
}

/// The values of Transformers.
#[test]
fn frequencies_are_stretched() {
    let rotary = |name| load(name).config.rotaries[0].clone();
    assert_near(&rotary("llama2-linear").frequencies, &[0.25, 0.025, 0.0025, 0.00025]);
    let expected = [0.576_056_36, 0.024_240_345, 0.004_700_754, 0.000_911_583_13, 0.000_176_776_68];
    assert_near(&rotary("llama3").frequencies[..5], &expected);
    assert_near(&rotary("qwen3").frequencies[..3], &[1.0, 0.111_142_464, 0.007_905_695]);
    assert_near(&[rotary("qwen3").magnitude], &[1.138_629_4]);
    let long = rotary("phi3-longrope");
    // Three quarters of a head of 16 turn.
    let expected = [1.0, 0.143_628_97, 0.018_566_353, 0.0025, 0.000_239_381_6, 0.000_029_009_934];
    assert_near(&long.frequencies, &expected);
    assert_near(&[long.magnitude], &[2.0]);
}

/// The values of Transformers for heads of 64.
#[test]
fn frequencies_between_change_smoothly() {
    let scaling = Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
    let llama = Rope { theta: 5e5, dims: None, scaling }.rotary(64).unwrap().frequencies;
    let expected = [0.003_211_446, 0.001_290_548, 0.000_429_556_7, 0.000_097_082_86, 0.000_019_461_638];
    assert_near(&llama[14..19], &expected);
    let scaling = Scaling::Yarn {
        factor: 4.0,
        original: 32768.0,
        fast: 32.0,
        slow: 1.0,
        truncates: true,
        magnitude: 1.0,
    };
    let yarn = Rope { theta: 1e6, dims: None, scaling }.rotary(64).unwrap().frequencies;
    assert_near(&yarn[10..14], &[0.013_335_215, 0.008_659_643, 0.005_154_795_5, 0.003_043_117_7]);
    assert_near(&yarn[18..20], &[0.000_175_706_87, 0.000_091_280_65]);
}

#[test]
fn impossible_rotary_embeddings_are_refused() {
    let refused =
        |dims, scaling| Rope { theta: 1e4, dims: Some(dims), scaling }.rotary(16).unwrap_err().to_string();
    assert!(refused(18, Scaling::None).contains("`rope dimensions` is 18"));
    assert!(refused(7, Scaling::None).contains("`rope dimensions` is 7"));
    let scaling = Scaling::Each { factors: vec![1.0; 3], magnitude: 1.0 };
    assert!(refused(16, scaling).contains("`number of rope factors` is 3"));
}
