//! `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

use std::path::Path;

use serde::Deserialize;

use crate::{
    config::ModelConfig,
    error::FormatError,
    text::{Document, ModelText, TextError, tokenizer},
};

/// Tokenizers of 256 Ki tokens take 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 1 << 27;
const MAX_TEMPLATE_BYTES: u64 = 1 << 23;

/// The fields of `tokenizer_config.json` that matter.
#[derive(Deserialize, Default)]
struct Settings {
    chat_template: Option<Templates>,
    eos_token: Option<TokenName>,
    bos_token: Option<TokenName>,
    add_bos_token: Option<bool>,
}

/// Some models have a template for each use.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Plain(String),
    Full { content: String },
}

/// Builds the text of a model.
pub fn read(directory: &Path, config: &ModelConfig) -> Result<ModelText, FormatError> {
    const FILE: &str = "tokenizer.json";
    let missing = || FormatError::MissingFile { file: FILE.to_owned() };
    let bytes = super::optional_file(directory, FILE, MAX_TOKENIZER_BYTES)?.ok_or_else(missing)?;
    let tokenizer = tokenizer::read(&bytes)
        .map_err(|error| TextError::Tokenizer { reason: format!("{FILE}: {error}") })?;
    let settings: Settings = super::optional_json(directory, "tokenizer_config.json")?.unwrap_or_default();
    let id = |name: &Option<TokenName>| name.as_ref().and_then(|name| tokenizer.token_to_id(name.content()));
    let bos_token = config.bos_token.or_else(|| id(&settings.bos_token));
    let eos_tokens = config.eos_tokens.iter().copied().chain(id(&settings.eos_token)).collect();
    let adds_bos = settings.add_bos_token.unwrap_or_else(|| {
        // The post-processor says what surrounds a text; of nothing, only that is left.
        let surroundings = tokenizer.encode("", true).ok();
        surroundings.is_some_and(|encoding| encoding.get_ids().first().copied() == bos_token)
    });
    Ok(ModelText::new(Document {
        chat_template: chat_template(directory, settings.chat_template)?,
        bos_token,
        adds_bos: adds_bos && bos_token.is_some(),
        eos_tokens,
        context_tokens: config.context_tokens,
        vocab_tokens: config.vocab,
        tokenizer,
    })?)
}

/// The template from its own file, or else from the tokenizer's configuration.
fn chat_template(directory: &Path, templates: Option<Templates>) -> Result<Option<String>, FormatError> {
    const FILE: &str = "chat_template.jinja";
    if let Some(bytes) = super::optional_file(directory, FILE, MAX_TEMPLATE_BYTES)? {
        return String::from_utf8(bytes).map(Some).map_err(|_| FormatError::NotUtf8 { what: FILE });
    }
    Ok(match templates {
        None => None,
        Some(Templates::One(template)) => Some(template),
        Some(Templates::Many(named)) => {
            named.into_iter().find(|named| named.name == "default").map(|named| named.template)
        }
    })
}

// === impl TokenName ===

impl TokenName {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Full { content } => content,
        }
    }
}
