//! What a text is made of, and its form as bytes.

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::{error::TextError, tokenizer::Plain};

/// The version of the bytes that this build writes and reads.
const VERSION: u32 = 1;
/// Tokenizers of 256 Ki tokens take 35 MB.
const MAX_BYTES: usize = 1 << 26;
const MAX_VOCAB_TOKENS: usize = 1 << 22;

/// Tokens that end a turn in known chat formats; they end an answer even if
/// the model's metadata forgets them.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"];

/// The parts of a text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub tokenizer: Tokenizer,
    pub chat_template: Option<String>,
    pub bos_token: Option<u32>,
    pub adds_bos: bool,
    pub eos_tokens: Vec<u32>,
    pub context_tokens: usize,
    pub vocab_tokens: usize,
}

/// A document and its version, read and written in this order.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    text: T,
}

/// What is looked at before a tokenizer is read.
#[derive(Deserialize)]
struct PlainDocument {
    #[serde(rename = "tokenizer")]
    _tokenizer: Plain,
}

/// Reads the version of any document.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

// === impl Document ===

impl Document {
    /// Removes what would change tokens silently, and finds the tokens that end an answer.
    pub fn complete(&mut self) -> Result<(), TextError> {
        let wrong = |error: tokenizers::Error| TextError::Tokenizer { reason: error.to_string() };
        self.tokenizer.with_padding(None).with_truncation(None).map_err(wrong)?;
        let added = self.tokenizer.get_added_tokens_decoder();
        let ends =
            added.iter().filter(|(_, token)| token.special && TURN_ENDS.contains(&token.content.as_str()));
        let mut ends: Vec<u32> = ends.map(|(id, _)| *id).collect();
        ends.sort_unstable();
        self.eos_tokens.extend(ends);
        let mut seen = std::collections::HashSet::new();
        self.eos_tokens.retain(|token| seen.insert(*token));
        self.check()
    }

    fn check(&self) -> Result<(), TextError> {
        if self.vocab_tokens > MAX_VOCAB_TOKENS {
            let found = self.vocab_tokens;
            return Err(TextError::Limit { what: "vocabulary", found, limit: MAX_VOCAB_TOKENS });
        }
        let ends = self.eos_tokens.iter().chain(&self.bos_token).copied();
        match ends.into_iter().find(|token| *token as usize >= self.vocab_tokens) {
            Some(token) => Err(TextError::Vocabulary { token, vocab_tokens: self.vocab_tokens }),
            None => Ok(()),
        }
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, TextError> {
        let bytes = serde_json::to_vec(&Versioned { version: VERSION, text: self })?;
        within_limit(&bytes)?;
        Ok(bytes)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        within_limit(bytes)?;
        let VersionOnly { version: found } = serde_json::from_slice(bytes)?;
        if found != VERSION {
            return Err(TextError::Version { found, supported: VERSION });
        }
        serde_json::from_slice::<Versioned<PlainDocument>>(bytes)?;
        let Versioned { text, .. }: Versioned<Self> = serde_json::from_slice(bytes)?;
        text.check()?;
        Ok(text)
    }
}

fn within_limit(bytes: &[u8]) -> Result<(), TextError> {
    if bytes.len() > MAX_BYTES {
        return Err(TextError::Limit { what: "text of a model", found: bytes.len(), limit: MAX_BYTES });
    }
    Ok(())
}
