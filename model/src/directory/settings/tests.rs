use serde_json::json;

use super::*;
use crate::{LayerAttention, Rotary};

/// A model of 4 layers with heads of 8, and more fields.
fn config(model_type: &str, more: Json) -> Result<ModelConfig, FormatError> {
    let mut json = json!({
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    });
    let Json::Object(more) = more else { panic!("not an object") };
    json.as_object_mut().unwrap().extend(more);
    let family = Family::of_hugging_face(model_type)?;
    parse(family, json)?.into_outline(family, Ends::default())?.into_config()
}

fn windows(model_type: &str, more: Json) -> Vec<Option<usize>> {
    config(model_type, more).unwrap().attention.iter().map(|layer| layer.window).collect()
}

fn error(model_type: &str, more: Json) -> String {
    config(model_type, more).unwrap_err().to_string()
}

#[test]
fn absent_fields_have_the_defaults_of_the_family() {
    let gemma = config("gemma3_text", json!({})).unwrap();
    assert_eq!(gemma.rotaries, [Rotary::plain(8, 1e6), Rotary::plain(8, 1e4)]);
    assert_eq!((gemma.activation, gemma.tied_embeddings), (Activation::GeluTanh, true));
    let smollm = config("smollm3", json!({})).unwrap();
    assert_eq!((&smollm.rotaries[..], smollm.tied_embeddings), ([Rotary::plain(8, 2e6)].as_slice(), true));
    assert_eq!(smollm.attention[3], LayerAttention { window: None, rotary: None });
    let qwen = config("qwen2", json!({ "sliding_window": 8 })).unwrap();
    assert_eq!((qwen.tied_embeddings, qwen.attention[0].window), (false, None));
}

#[test]
fn windows_are_told_in_several_ways() {
    let (some, none) = (Some(8), None);
    let window = |key: &str, value: Json| {
        let mut json = json!({ "sliding_window": 8 });
        json[key] = value;
        json
    };
    assert_eq!(windows("gemma3_text", window("x", json!(0))), [some; 4]);
    for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
        assert_eq!(windows("gemma3_text", window(key, json!(2))), [some, none, some, none], "{key}");
    }
    let both = json!({ "sliding_window": 8, "sliding_window_pattern": 2, "_sliding_window_pattern": 2 });
    assert_eq!(windows("gemma3_text", both), [some, none, some, none]);
    let types = json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]);
    assert_eq!(windows("gemma2", window("layer_types", types)), [none, some, none, none]);
    assert_eq!(windows("mistral", json!({ "sliding_window": null })), [none; 4]);
    let short = window("layer_types", json!(["full_attention"]));
    assert!(error("gemma2", short).contains("`list of windowed layers` is 1"));
    let chunked = window("layer_types", json!(["chunked_attention"]));
    assert!(error("gemma2", chunked).contains("attention `chunked_attention` is not supported"));
    assert!(
        error("gemma2", json!({ "layer_types": ["sliding_attention"] })).contains("`sliding_window` is null")
    );
    let asked = json!({ "sliding_window": 8, "use_sliding_window": true });
    assert!(error("smollm3", asked).contains("use_sliding_window `true` is not supported"));
}

/// Newer versions of Transformers write one embedding for each kind of attention.
#[test]
fn each_kind_of_attention_may_have_its_embedding() {
    let ropes = json!({
        "full_attention": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
    });
    let [global, local] =
        config("gemma3_text", json!({ "rope_parameters": ropes })).unwrap().rotaries.try_into().unwrap();
    assert_eq!(local, Rotary::plain(8, 2e4));
    let halved: Vec<f32> =
        Rotary::plain(8, 5e5).frequencies.iter().map(|frequency| frequency / 2.0).collect();
    assert_eq!(global.frequencies, halved);
}

#[test]
fn factors_follow_from_the_context() {
    let phi = |context: usize| {
        let long = json!({ "type": "su", "short_factor": [1.0, 1.0, 1.0], "long_factor": [2.0, 2.0, 2.0] });
        config(
            "phi3",
            json!({
                "max_position_embeddings": context, "original_max_position_embeddings": 64,
                "partial_rotary_factor": 0.75, "rope_scaling": long,
            }),
        )
    };
    let [short] = phi(64).unwrap().rotaries.try_into().unwrap();
    assert_eq!(short, Rotary::plain(6, 1e4));
    let [long] = phi(128).unwrap().rotaries.try_into().unwrap();
    assert_eq!(long.frequencies[0], 0.5);
    assert!((long.magnitude - (1.0 + 2f32.ln() / 64f32.ln()).sqrt()).abs() < 1e-6);
    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let yarn = |more: &str, value: f32| {
        let mut yarn = yarn.clone();
        yarn[more] = json!(value);
        config("qwen2", json!({ "rope_scaling": yarn })).unwrap()
    };
    assert_eq!(yarn("beta_fast", 32.0).context_tokens, 256);
    assert_eq!(yarn("attention_factor", 1.5).rotaries[0].magnitude, 1.5);
}
