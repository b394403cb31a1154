//! The tokenizer that the metadata of a GGUF file describes, as a `tokenizer.json`.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::metadata::Metadata;
use crate::{
    config::ModelConfig,
    error::FormatError,
    text::{Document, ModelText, TextError},
};

/// Token types of ggml that are matched in text as a whole.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// How Llama 3 cuts text before BPE.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the text of a model.
pub fn read(metadata: &Metadata, config: &ModelConfig) -> Result<ModelText, FormatError> {
    let kind = metadata.text("tokenizer.ggml.model")?;
    if kind != "gpt2" {
        let found = kind.to_owned();
        return Err(FormatError::Unsupported { what: "tokenizer", found, supported: "gpt2" });
    }
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let added = added_tokens(metadata, tokens)?;
    let (pre_tokenizer, ignore_merges) = pre_tokenizer(metadata.text("tokenizer.ggml.pre")?)?;
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": vocabulary(tokens)?,
            "merges": merges(metadata, tokens)?,
        },
    });
    let tokenizer = serde_json::from_value(tokenizer)
        .map_err(|error| TextError::Tokenizer { reason: error.to_string() })?;
    let mut eos_tokens = config.eos_tokens.clone();
    eos_tokens.extend(metadata.token("tokenizer.ggml.eot_token_id")?);
    Ok(ModelText::new(Document {
        tokenizer,
        chat_template: metadata.optional_text("tokenizer.chat_template")?.map(str::to_owned),
        bos_token: config.bos_token,
        adds_bos: metadata.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false),
        eos_tokens,
        context_tokens: config.context_tokens,
        vocab_tokens: config.vocab,
    })?)
}

fn vocabulary(tokens: &[String]) -> Result<HashMap<&str, usize>, FormatError> {
    let vocabulary: HashMap<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if vocabulary.len() == tokens.len() {
        return Ok(vocabulary);
    }
    let mut seen = HashSet::new();
    let twice = tokens.iter().find(|token| !seen.insert(*token)).cloned().unwrap_or_default();
    Err(FormatError::Value {
        key: "tokenizer.ggml.tokens".to_owned(),
        found: format!("a list with {twice:?} in it twice"),
        expected: "a list of different tokens",
    })
}

fn merges<'a>(metadata: &'a Metadata, tokens: &[String]) -> Result<Vec<(&'a str, &'a str)>, FormatError> {
    const KEY: &str = "tokenizer.ggml.merges";
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let pairs = metadata.texts(KEY)?.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
        });
        let wrong = || FormatError::Value {
            key: KEY.to_owned(),
            found: format!("{merge:?}"),
            expected: "two tokens that make a third",
        };
        pair.ok_or_else(wrong)
    });
    pairs.collect()
}

fn added_tokens(metadata: &Metadata, tokens: &[String]) -> Result<Vec<Json>, FormatError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let types = metadata.optional_ints(KEY)?.ok_or_else(|| FormatError::Missing { key: KEY.to_owned() })?;
    if types.len() != tokens.len() {
        let found = format!("an array of {} numbers", types.len());
        return Err(FormatError::Value { key: KEY.to_owned(), found, expected: "one number for each token" });
    }
    let added = types.iter().zip(tokens).enumerate();
    let added =
        added.filter(|(_, (kind, token))| [CONTROL, USER_DEFINED].contains(kind) && !token.is_empty());
    Ok(added
        .map(|(id, (kind, content))| {
            json!({
                "id": id, "content": content, "special": *kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect())
}

/// The pre-tokenizer of this name, and whether words of the vocabulary are taken whole.
fn pre_tokenizer(name: &str) -> Result<(Json, bool), FormatError> {
    Ok(match name {
        "gpt-2" => (byte_level(true), false),
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            (json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] }), false)
        }
        "llama-bpe" => {
            let split = json!({
                "type": "Split", "pattern": { "Regex": LLAMA3_SPLIT }, "behavior": "Isolated", "invert": false,
            });
            (json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] }), true)
        }
        found => {
            return Err(FormatError::Unsupported {
                what: "pre-tokenizer",
                found: found.to_owned(),
                supported: "smollm, gpt-2 and llama-bpe",
            });
        }
    })
}

fn byte_level(use_regex: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

#[cfg(test)]
mod tests {
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    };

    use super::*;

    #[test]
    fn texts_are_cut_as_the_names_say() {
        for (name, expected) in [
            ("gpt-2", "it|'s|Ġ12345|ĊĊ|Ġx"),
            ("smollm", "it|'s|Ġ|1|2|3|4|5|ĊĊ|Ġx"),
            ("llama-bpe", "it|'s|Ġ|123|45|ĊĊ|Ġx"),
        ] {
            let (json, _) = pre_tokenizer(name).unwrap();
            let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(json).unwrap();
            let mut text = PreTokenizedString::from("it's 12345\n\n x");
            pre_tokenizer.pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            let words: Vec<_> = splits.into_iter().map(|(word, _, _)| word).collect();
            assert_eq!(words.join("|"), expected, "{name}");
        }
    }
}
