//! A text that needs no file.

use serde_json::{Map, Value as Json, json};

use super::{Document, ModelText, vocabulary::byte_name};

const IM_START: u32 = 256;
const IM_END: u32 = 257;
const CONTEXT_TOKENS: usize = 1 << 15;

const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Builds the text of [`ModelText::mock`].
pub fn text() -> ModelText {
    made_up(IM_END as usize + 1, CONTEXT_TOKENS)
}

/// Builds the text of [`ModelText::made_up`].
#[expect(clippy::expect_used, reason = "everything follows from the sizes, and a test builds it")]
pub fn made_up(vocab_tokens: usize, context_tokens: usize) -> ModelText {
    let vocab_tokens = vocab_tokens.max(IM_END as usize + 1);
    let mut vocab: Map<String, Json> =
        (0..=u8::MAX).filter_map(|byte| Some((byte_name(byte)?.to_string(), byte.into()))).collect();
    let mut added = Vec::new();
    for (id, name) in [(IM_START, "<|im_start|>"), (IM_END, "<|im_end|>")] {
        vocab.insert(name.to_owned(), id.into());
        added.push(json!({
            "id": id, "content": name, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    let space = byte_name(b' ').unwrap_or(' ');
    for id in IM_END as usize + 1..vocab_tokens {
        vocab.insert(format!("{space}{id}"), id.into());
    }
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    let document = Document {
        tokenizer: serde_json::from_value(tokenizer).expect("the tokenizer is constant"),
        chat_template: Some(CHATML.to_owned()),
        bos_token: None,
        adds_bos: false,
        eos_tokens: vec![IM_END],
        context_tokens,
        vocab_tokens,
    };
    ModelText::new(document).expect("the document is constant")
}
