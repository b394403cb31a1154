//! BPE over bytes, as of GPT-2.

use std::collections::HashSet;

use serde_json::{Value as Json, json};
use tokenizers::{
    PreTokenizerWrapper, Tokenizer,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, Merges},
};

use super::{Tokens, unusable};
use crate::{error::FormatError, gguf::metadata::Metadata, text::splits};

/// What llama.cpp does for files that name nothing better.
const DEFAULT_SPLITS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];

/// How a text is cut into words before BPE.
enum Cut {
    /// GPT-2's way, here after single digits are set apart.
    Gpt2 {
        digits_apart: bool,
    },
    Regex(&'static str),
    /// Cut by one expression after the other.
    Regexes(&'static [&'static str]),
}

/// What the name of a pre-tokenizer stands for.
struct PreTokenizer {
    cut: Cut,
    /// Words of the vocabulary are taken whole, whatever the merges say.
    ignores_merges: bool,
    /// Texts begin with the token that begins a text, unless the file says something else.
    begins: bool,
}

/// The tokenizer, and whether texts usually begin with a token for it.
pub fn tokenizer(metadata: &Metadata, tokens: Tokens<'_>) -> Result<(Tokenizer, bool), FormatError> {
    let pre_tokenizer = PreTokenizer::of(metadata.text("tokenizer.ggml.pre")?)?;
    let bpe = BPE::builder()
        .vocab_and_merges(tokens.ids(), merges(metadata, tokens)?)
        .ignore_merges(pre_tokenizer.ignores_merges);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(|error| unusable(&error))?);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer.wrapper()?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok((tokenizer, pre_tokenizer.begins))
}

fn merges(metadata: &Metadata, tokens: Tokens<'_>) -> Result<Merges, FormatError> {
    const KEY: &str = "tokenizer.ggml.merges";
    let known: HashSet<&str> = tokens.iter().map(|(name, _, _)| name).collect();
    let pairs = metadata.texts(KEY)?.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            known.contains(left) && known.contains(right) && known.contains([*left, *right].concat().as_str())
        });
        let wrong = || FormatError::Value {
            key: KEY.to_owned(),
            found: format!("{merge:?}"),
            expected: "two tokens that make a third",
        };
        pair.map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(wrong)
    });
    pairs.collect()
}

// === impl PreTokenizer ===

impl PreTokenizer {
    fn of(name: &str) -> Result<Self, FormatError> {
        let (cut, ignores_merges, begins) = match name {
            "default" => (Cut::Regexes(&DEFAULT_SPLITS), false, false),
            "gpt-2" | "phi-2" | "olmo" => (Cut::Gpt2 { digits_apart: false }, false, false),
            "smollm" => (Cut::Gpt2 { digits_apart: true }, false, false),
            "llama-bpe" | "llama3" | "llama-v3" => (Cut::Regex(splits::LLAMA3), true, true),
            "dbrx" => (Cut::Regex(splits::LLAMA3), false, false),
            "qwen2" | "deepseek-r1-qwen" => (Cut::Regex(splits::QWEN2), false, false),
            "gpt-4o" => (Cut::Regex(splits::GPT4O), false, false),
            "tekken" => (Cut::Regex(splits::TEKKEN), true, true),
            found => {
                return Err(FormatError::Unsupported {
                    what: "pre-tokenizer",
                    found: found.to_owned(),
                    supported: "default, gpt-2, phi-2, olmo, smollm, llama-bpe, dbrx, qwen2, gpt-4o and tekken",
                });
            }
        };
        Ok(Self { cut, ignores_merges, begins })
    }

    fn wrapper(&self) -> Result<PreTokenizerWrapper, FormatError> {
        let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let steps = match self.cut {
            Cut::Gpt2 { digits_apart: false } => vec![byte_level(true)],
            Cut::Gpt2 { digits_apart: true } => {
                vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)]
            }
            Cut::Regex(regex) => vec![split(regex), byte_level(false)],
            Cut::Regexes(regexes) => {
                regexes.iter().map(|regex| split(regex)).chain([byte_level(false)]).collect()
            }
        };
        let json = json!({ "type": "Sequence", "pretokenizers": steps });
        serde_json::from_value(json).map_err(|error| unusable(&error))
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    #[test]
    fn texts_are_cut_as_the_names_say() {
        for (name, expected) in [
            ("gpt-2", "it|'s|Ġ12345|ĊĊ|Ġx"),
            ("smollm", "it|'s|Ġ|1|2|3|4|5|ĊĊ|Ġx"),
            ("llama-bpe", "it|'s|Ġ|123|45|ĊĊ|Ġx"),
            ("dbrx", "it|'s|Ġ|123|45|ĊĊ|Ġx"),
            ("qwen2", "it|'s|Ġ|1|2|3|4|5|ĊĊ|Ġx"),
            ("gpt-4o", "it's|Ġ|123|45|ĊĊ|Ġx"),
            ("tekken", "it|'s|Ġ|1|2|3|4|5|ĊĊ|Ġx"),
            ("olmo", "it|'s|Ġ12345|ĊĊ|Ġx"),
            ("default", "it|'|s|Ġ|123|45|ĊĊ|Ġx"),
        ] {
            let pre_tokenizer = PreTokenizer::of(name).unwrap().wrapper().unwrap();
            let mut text = PreTokenizedString::from("it's 12345\n\n x");
            pre_tokenizer.pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            let words: Vec<_> = splits.into_iter().map(|(word, _, _)| word).collect();
            assert_eq!(words.join("|"), expected, "{name}");
        }
    }
}
