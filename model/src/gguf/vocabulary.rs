//! The tokenizer that the metadata of a GGUF file describes.
//!
//! - [`byte_level`]: BPE over bytes, as of GPT-2
//! - [`pieces`]: pieces of text with scores, as of SentencePiece

mod byte_level;
mod pieces;

use std::collections::HashSet;

use tokenizers::AddedToken;

use super::metadata::Metadata;
use crate::{
    config::ModelConfig,
    error::FormatError,
    families::Family,
    text::{Document, ModelText, TextError},
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Token types of ggml. Control and user-defined tokens are matched in text as a whole.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// Tokens and their types.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    names: &'a [String],
    types: &'a [i128],
}

/// Builds the text of a model.
pub fn read(metadata: &Metadata, family: &Family, config: &ModelConfig) -> Result<ModelText, FormatError> {
    let tokens = Tokens::read(metadata)?;
    let (mut tokenizer, begins) = match metadata.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level::tokenizer(metadata, tokens)?,
        "llama" => (pieces::tokenizer(metadata, tokens)?, true),
        found => {
            let found = found.to_owned();
            return Err(FormatError::Unsupported { what: "tokenizer", found, supported: "gpt2 and llama" });
        }
    };
    tokenizer.add_tokens(&tokens.added());
    let mut eos_tokens = config.eos_tokens.clone();
    eos_tokens.extend(metadata.token("tokenizer.ggml.eot_token_id")?);
    let adds_bos = metadata.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let chat_template = metadata.optional_text("tokenizer.chat_template")?;
    Ok(ModelText::new(Document {
        tokenizer,
        chat_template: chat_template.or(family.chat_template).map(str::to_owned),
        bos_token: config.bos_token,
        adds_bos: adds_bos && config.bos_token.is_some(),
        eos_tokens,
        context_tokens: config.context_tokens,
        vocab_tokens: config.vocab,
    })?)
}

fn unusable(error: &impl ToString) -> FormatError {
    TextError::Tokenizer { reason: error.to_string() }.into()
}

// === impl Tokens ===

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, FormatError> {
        let names = metadata.texts(TOKENS)?;
        let missing = || FormatError::Missing { key: TYPES.to_owned() };
        let types = metadata.optional_ints(TYPES)?.ok_or_else(missing)?;
        if types.len() != names.len() {
            let found = format!("an array of {} numbers", types.len());
            let expected = "one number for each token";
            return Err(FormatError::Value { key: TYPES.to_owned(), found, expected });
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|token| !seen.insert(*token)) {
            let found = format!("a list with {twice:?} in it twice");
            let expected = "a list of different tokens";
            return Err(FormatError::Value { key: TOKENS.to_owned(), found, expected });
        }
        Ok(Self { names, types })
    }

    /// Name, type and id of each.
    fn iter(self) -> impl Iterator<Item = (&'a str, i128, u32)> {
        let tokens = self.names.iter().zip(self.types).zip(0..);
        tokens.map(|((name, kind), id)| (name.as_str(), *kind, id))
    }

    fn ids(self) -> tokenizers::models::bpe::Vocab {
        self.iter().map(|(name, _, id)| (name.to_owned(), id)).collect()
    }

    fn added(self) -> Vec<AddedToken> {
        let added =
            self.iter().filter(|(name, kind, _)| [CONTROL, USER_DEFINED].contains(kind) && !name.is_empty());
        added.map(|(name, kind, _)| AddedToken::from(name, kind == CONTROL).normalized(false)).collect()
    }
}
