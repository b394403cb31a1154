//! Gemma 3 270M against SentencePiece and Transformers.

use std::sync::OnceLock;

use serde_json::{Map, json};

use super::{Golden, pulled, read};
use crate::{LayerAttention, Model, Rotary};

fn golden() -> Golden {
    read("gemma3-270m-q4_k_m.json")
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| pulled("gemma3-270m"))
}

#[test]
fn prompts_have_the_same_tokens() {
    for case in golden().cases {
        let tokens = model().text.encode(&case.prompt_text, true).unwrap();
        assert_eq!(tokens, case.prompt_ids, "{}", case.name);
        assert_eq!(model().text.decode(&tokens), case.prompt_text, "{}", case.name);
    }
}

#[test]
fn answers_have_the_same_text() {
    for case in golden().cases {
        assert_eq!(model().text.decode(&case.output_ids), case.output_text, "{}", case.name);
        let end = case.first_eos_step.unwrap_or(case.output_ids.len());
        let mut detokenizer = model().text.detokenizer();
        let mut text: String = case.output_ids[..end].iter().map(|token| detokenizer.push(*token)).collect();
        text.push_str(&detokenizer.finish());
        assert_eq!(text, case.output_text_until_eos, "{}", case.name);
    }
}

/// The file has no template; the family's is used.
#[test]
fn chat_prompts_come_from_the_template() {
    let case = golden().cases.into_iter().find(|case| case.name == "chat-capital").unwrap();
    assert_eq!(case.kind, "chat");
    let messages = json!([{ "role": "user", "content": "What is the capital of Japan?" }]);
    assert_eq!(model().text.render(&messages, &Map::new()).unwrap(), case.prompt_text);
    assert_eq!(model().text.chat_tokens(&messages, &Map::new()).unwrap(), case.prompt_ids);
}

#[test]
fn the_configuration_is_right() {
    let Model { config, text, .. } = model();
    assert_eq!((config.layers, config.hidden, config.heads, config.kv_heads), (18, 640, 4, 1));
    assert_eq!((config.head_dim, config.intermediate, config.vocab), (256, 2048, 262_144));
    assert_eq!((config.context_tokens, config.rms_eps), (32_768, 1e-6));
    assert_eq!(config.rotaries, [Rotary::plain(256, 1e6), Rotary::plain(256, 1e4)]);
    let global = LayerAttention { window: None, rotary: Some(0) };
    let local = LayerAttention { window: Some(512), rotary: Some(1) };
    for (layer, attention) in config.attention.iter().enumerate() {
        assert_eq!(*attention, if layer % 6 == 5 { global } else { local }, "layer {layer}");
    }
    assert_eq!((config.attention_scale, config.embedding_scale), (1.0 / 16.0, 640f32.sqrt()));
    assert!(config.tied_embeddings);
    assert_eq!((config.eos_tokens.as_slice(), config.bos_token), ([1, 106].as_slice(), Some(2)));
    assert!(text.adds_bos() && text.has_template());
}

#[test]
fn bytes_spaces_and_tags_are_tokens() {
    let text = &model().text;
    for written in ["\u{1}\u{7f}", "a  b", " x", "   ", "<h1>t</h1>", "\n\n\nz", "\t\t", "𐍈 ℝ"] {
        assert_eq!(text.decode(&text.encode(written, false).unwrap()), written);
    }
    let control = text.encode("<end_of_turn>", true).unwrap();
    assert_eq!(control, [106]);
    assert!(text.encode("<end_of_turn>", false).unwrap().len() > 1);
}
