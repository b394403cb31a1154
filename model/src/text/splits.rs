//! How tokenizers cut text into words before BPE, and where all of them do.

use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, Tokenizer, models::ModelWrapper,
    pre_tokenizers::split::SplitPattern, tokenizer::SplitDelimiterBehavior,
};

/// How Llama 3 does.
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Qwen 2 does: digits one by one.
pub const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How GPT-4o does, and Phi-4 mini.
pub const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Mistral's newer models do.
pub const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether `tokenizer` cuts wherever [`words`] does, and goes on from there as
/// from the beginning of a text, so that the tokens of a text are those of its
/// words, one after the other.
///
/// It does where its expression is one of those that are known here: a space
/// comes in their matches only first or behind other white space, nothing in
/// them looks back, and they leave nothing out. Added tokens must not reach
/// across a space either.
pub fn cuts_at_words(tokenizer: &Tokenizer) -> bool {
    let unchanged = matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::NFC(_)));
    let certain = matches!(tokenizer.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_none());
    let added = tokenizer.get_added_tokens_decoder();
    let apart = added.values().all(|token| {
        let reaches = token.lstrip || token.rstrip || token.single_word;
        !reaches && !token.content.contains(char::is_whitespace)
    });
    unchanged && certain && apart && tokenizer.get_pre_tokenizer().is_some_and(cuts)
}

fn cuts(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex && !bytes.add_prefix_space,
        PreTokenizerWrapper::Split(split) => {
            let SplitPattern::Regex(regex) = &split.pattern else { return false };
            let known = [LLAMA3, QWEN2, GPT4O, TEKKEN].contains(&regex.as_str());
            known && split.behavior == SplitDelimiterBehavior::Isolated && !split.invert
        }
        PreTokenizerWrapper::Sequence(steps) => {
            let steps = steps.as_ref();
            steps.iter().any(cuts) && steps.iter().all(|step| cuts(step) || leaves_words(step))
        }
        _ => false,
    }
}

/// Whether a step looks at one character at a time, so that what it does to a word does not depend on others.
fn leaves_words(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::ByteLevel(bytes) => !bytes.use_regex && !bytes.add_prefix_space,
        PreTokenizerWrapper::Digits(_) => true,
        _ => false,
    }
}

/// `text` in pieces: each but the first begins with a space before a letter, and none but the
/// last ends with white space.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (word, left) = rest.split_at(first_word_end(rest));
        rest = left;
        (!word.is_empty()).then_some(word)
    })
}

fn first_word_end(text: &str) -> usize {
    let begins = |at: usize| {
        let before = text[..at].chars().next_back();
        let behind = text[at + 1..].chars().next();
        before.is_some_and(|char| !char.is_whitespace()) && behind.is_some_and(char::is_alphabetic)
    };
    let mut spaces = text.bytes().enumerate().filter(|(_, byte)| *byte == b' ');
    spaces.find(|(at, _)| begins(*at)).map_or(text.len(), |(at, _)| at)
}
