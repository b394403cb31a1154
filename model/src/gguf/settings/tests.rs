use std::collections::BTreeMap;

use super::*;
use crate::{Activation, Norms, QkNorm, Rotary, gguf::metadata::Value};

/// A file of an architecture: 4 layers of 4 heads of 8.
fn values(architecture: &str) -> BTreeMap<String, Value> {
    let sizes = [
        ("block_count", 4),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let mut values: BTreeMap<_, _> =
        sizes.into_iter().map(|(key, size)| (format!("{architecture}.{key}"), Value::Int(size))).collect();
    values.insert("general.architecture".into(), Value::Text(architecture.into()));
    values.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::Float(1e-6));
    values.insert("tokenizer.ggml.tokens".into(), Value::Texts(vec!["a".into(), "b".into()]));
    values
}

fn with(
    architecture: &str,
    more: Vec<(&str, Value)>,
    factors: RopeFactors,
) -> Result<ModelConfig, FormatError> {
    let mut values = values(architecture);
    values.extend(more.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)));
    read(&Metadata::new(values), &[], factors).map(|(_, config)| config)
}

fn config(architecture: &str, more: Vec<(&str, Value)>) -> ModelConfig {
    with(architecture, more, RopeFactors::default()).unwrap()
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.attention.iter().map(|layer| layer.window).collect()
}

fn divided(theta: f32, factors: &[f32]) -> Rotary {
    let mut rotary = Rotary::plain(2 * factors.len(), theta);
    rotary.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    rotary
}

#[test]
fn every_architecture_is_read() {
    for (architecture, norms, qk_norm, activation, qkv_bias) in [
        ("llama", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("qwen2", Norms::Before, QkNorm::None, Activation::Silu, true),
        ("qwen3", Norms::Before, QkNorm::Head, Activation::Silu, false),
        ("gemma2", Norms::Around, QkNorm::None, Activation::GeluTanh, false),
        ("gemma3", Norms::Around, QkNorm::Head, Activation::GeluTanh, false),
        ("phi3", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("smollm3", Norms::Before, QkNorm::None, Activation::Silu, false),
        ("olmo2", Norms::After, QkNorm::Row, Activation::Silu, false),
    ] {
        let config = config(architecture, vec![]);
        let found = (config.norms, config.qk_norm, config.activation, config.qkv_bias);
        assert_eq!(found, (norms, qk_norm, activation, qkv_bias), "{architecture}");
        assert_eq!((config.layers, config.kv_heads, config.head_dim), (4, 2, 8), "{architecture}");
    }
}

#[test]
fn windows_are_read() {
    let window = || ("attention.sliding_window", Value::Int(8));
    let (some, none) = (Some(8), None);
    assert_eq!(windows(&config("gemma2", vec![])), [Some(4096), None, Some(4096), None]);
    assert_eq!(windows(&config("gemma2", vec![window()])), [some, none, some, none]);
    assert_eq!(windows(&config("gemma3", vec![])), [none; 4]);
    assert_eq!(windows(&config("gemma3", vec![window()])), [some; 4]);
    let pattern = |pattern| vec![window(), ("attention.sliding_window_pattern", pattern)];
    assert_eq!(windows(&config("gemma3", pattern(Value::Int(3)))), [some, some, none, some]);
    let listed = Value::Ints(vec![0, 1, 0, 1]);
    assert_eq!(windows(&config("gemma3", pattern(listed))), [none, some, none, some]);
    assert_eq!(windows(&config("phi3", vec![window()])), [some; 4]);
    assert_eq!(windows(&config("phi3", vec![("attention.sliding_window", Value::Int(0))])), [none; 4]);
    for architecture in ["olmo2", "qwen2"] {
        let error = with(architecture, vec![window()], RopeFactors::default()).unwrap_err().to_string();
        assert!(error.contains("attention.sliding_window` is 8"), "{error}");
    }
    let short = with("gemma3", pattern(Value::Ints(vec![1])), RopeFactors::default()).unwrap_err();
    assert!(short.to_string().contains("`list of windowed layers` is 1"), "{short}");
}

#[test]
fn gemma_has_its_constants() {
    let caps = vec![
        ("attn_logit_softcapping", Value::Float(50.0)),
        ("final_logit_softcapping", Value::Float(30.0)),
        ("attention.key_length", Value::Int(16)),
    ];
    let gemma = config("gemma2", caps);
    assert_eq!((gemma.attention_softcap, gemma.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.attention_scale, gemma.embedding_scale), (0.25, 32f32.sqrt()));
    // The largest one shares the hidden size among its heads.
    let largest = vec![("block_count", Value::Int(46)), ("attention.key_length", Value::Int(16))];
    assert_eq!(config("gemma2", largest).attention_scale, 1.0 / 8f32.sqrt());
}

#[test]
fn rotary_embeddings_are_read() {
    assert_eq!(config("qwen2", vec![]).rotaries, [Rotary::plain(8, 1e4)]);
    let linear = || {
        vec![
            ("rope.freq_base", Value::Float(1e6)),
            ("rope.scaling.type", Value::Text("linear".into())),
            ("rope.scaling.factor", Value::Float(8.0)),
        ]
    };
    // Only layers that see everything are stretched.
    assert_eq!(config("gemma3", linear()).rotaries, [divided(1e6, &[8.0; 4]), Rotary::plain(8, 1e4)]);
    assert_eq!(config("llama", linear()).rotaries, [divided(1e6, &[8.0; 4])]);
    let older = vec![("rope.scale_linear", Value::Float(4.0))];
    assert_eq!(config("llama", older).rotaries, [divided(1e4, &[4.0; 4])]);
    let yarn = vec![
        ("rope.scaling.type", Value::Text("yarn".into())),
        ("rope.scaling.factor", Value::Float(4.0)),
        ("rope.scaling.original_context_length", Value::Int(64)),
    ];
    let [yarn] = config("qwen3", yarn).rotaries.try_into().unwrap();
    assert!((yarn.magnitude - 1.138_629_4).abs() < 1e-6);
    assert_eq!(yarn.frequencies[0], 1.0);
    let blind: Vec<_> = config("smollm3", vec![]).attention.iter().map(|layer| layer.rotary).collect();
    assert_eq!(blind, [Some(0), Some(0), Some(0), None]);
}

#[test]
fn factors_come_from_tensors() {
    let always = RopeFactors { always: Some(vec![1.0, 2.0, 4.0, 8.0]), ..RopeFactors::default() };
    assert_eq!(with("llama", vec![], always).unwrap().rotaries, [divided(1e4, &[1.0, 2.0, 4.0, 8.0])]);
    let long = |context| {
        let factors =
            RopeFactors { short: Some(vec![1.0; 3]), long: Some(vec![2.0; 3]), ..RopeFactors::default() };
        let more = vec![
            ("context_length", Value::Int(context)),
            ("rope.scaling.original_context_length", Value::Int(64)),
            ("rope.scaling.attn_factor", Value::Float(1.5)),
            ("rope.dimension_count", Value::Int(6)),
        ];
        let [rotary] = with("phi3", more, factors).unwrap().rotaries.try_into().unwrap();
        rotary
    };
    assert_eq!(long(64), Rotary { magnitude: 1.5, ..divided(1e4, &[1.0; 3]) });
    assert_eq!(long(65), Rotary { magnitude: 1.5, ..divided(1e4, &[2.0; 3]) });
    let wrong = RopeFactors { always: Some(vec![1.0]), ..RopeFactors::default() };
    assert!(with("llama", vec![], wrong).unwrap_err().to_string().contains("rope factors` is 1"));
}
