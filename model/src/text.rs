//! Everything between text and tokens: tokenizer, chat template, detokenizer.
//!
//! - [`encoder`]: text to tokens, words that were seen before by looking them up
//! - [`splits`]: how tokenizers cut text into words
//! - [`document`]: what a text is made of, and its form as bytes
//! - [`vocabulary`]: the bytes that each token stands for
//! - [`detokenizer`]: tokens to text, one by one, never half a character
//! - [`template`]: chat messages to text, with fuel
//! - [`control`]: keeps control tokens that messages spell out as plain text
//! - [`strftime`]: dates, for templates that want to know the day

mod control;
mod detokenizer;
mod document;
mod encoder;
mod error;
mod mock;
pub(crate) mod splits;
mod strftime;
pub(crate) mod template;
pub(crate) mod tokenizer;
mod vocabulary;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

use serde_json::{Map, Value as Json};

pub use detokenizer::Detokenizer;
pub(crate) use document::Document;
pub use error::TextError;

use control::Control;
use encoder::Encoder;
use template::ChatTemplate;
use vocabulary::Vocabulary;

use crate::{
    families,
    grammar::{GrammarError, Grammars},
};

/// Tokenizer, chat template, special tokens and limits of a model: all that a
/// frontend needs. Travels as bytes and is named by their digest.
pub struct ModelText {
    /// Finds control tokens in text.
    parsing: Encoder,
    /// Takes control tokens in text for text; made when the first such text comes, which is seldom.
    plain: OnceLock<Encoder>,
    vocabulary: Vocabulary,
    template: Option<ChatTemplate>,
    control: Control,
    bos_token: Option<u32>,
    adds_bos: bool,
    eos_tokens: Vec<u32>,
    context_tokens: usize,
    bytes: Arc<[u8]>,
    /// Made when the first one is asked for.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

// === impl ModelText ===

impl ModelText {
    /// Builds a text from its parts.
    pub(crate) fn new(mut document: Document) -> Result<Self, TextError> {
        document.complete()?;
        let bytes = document.to_bytes()?;
        Self::assemble(document, bytes.into())
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are too many, of another version, or no text of a model.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::assemble(Document::from_bytes(bytes)?, bytes.into())
    }

    fn assemble(document: Document, bytes: Arc<[u8]>) -> Result<Self, TextError> {
        let Document { tokenizer, chat_template, bos_token, eos_tokens, vocab_tokens, .. } = document;
        let vocabulary = Vocabulary::new(&tokenizer, vocab_tokens)?;
        let name = |token: u32| String::from_utf8_lossy(vocabulary.bytes(token)).into_owned();
        let template = chat_template.map(|source| {
            let eos_name = eos_tokens.first().map(|token| name(*token));
            ChatTemplate::new(source, bos_token.map(name), eos_name)
        });
        Ok(Self {
            template: template.transpose()?,
            control: Control::new(vocabulary.control_names()),
            parsing: Encoder::new(tokenizer),
            plain: OnceLock::new(),
            vocabulary,
            bos_token,
            adds_bos: document.adds_bos,
            eos_tokens,
            context_tokens: document.context_tokens,
            bytes,
            grammars: OnceLock::new(),
        })
    }

    /// A text that needs no file: a token for each byte, `<|im_start|>` (256)
    /// and `<|im_end|>` (257, ends an answer), and the ChatML template.
    #[must_use]
    pub fn mock() -> Self {
        mock::text()
    }

    /// As [`mock`](Self::mock), for a model of a larger vocabulary: its other tokens are
    /// their numbers. No text becomes them.
    #[must_use]
    pub fn made_up(vocab_tokens: usize, context_tokens: usize) -> Self {
        mock::made_up(vocab_tokens, context_tokens)
    }

    /// The tokens of a text, without a token that begins it.
    ///
    /// With `parse_special`, control tokens spelled in the text become those
    /// tokens; otherwise they stay text.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let encoder = if parse_special { &self.parsing } else { self.plain() };
        encoder.encode(text).map_err(|error| TextError::Encode { reason: error.to_string() })
    }

    fn plain(&self) -> &Encoder {
        self.plain.get_or_init(|| {
            let mut tokenizer = self.parsing.tokenizer().clone();
            tokenizer.set_encode_special_tokens(true);
            Encoder::new(tokenizer)
        })
    }

    /// As [`encode`](Self::encode) with control tokens found, each with the characters of `text` that it stands for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_spans(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, TextError> {
        let encoding = self.parsing.tokenizer().encode_char_offsets(text, false);
        let encoding = encoding.map_err(|error| TextError::Encode { reason: error.to_string() })?;
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(spans).collect())
    }

    /// The tokens of chat messages in the model's template, ready for an answer.
    ///
    /// `extra` are further variables of the template, such as `tools` or
    /// `add_generation_prompt` (true unless given). Control tokens that
    /// strings in `messages` or `extra` spell out stay text.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages or exceeds its limits.
    pub fn chat_tokens(&self, messages: &Json, extra: &Map<String, Json>) -> Result<Vec<u32>, TextError> {
        if !self.control.spelled_in(messages, extra) {
            return self.encode(&self.render(messages, extra)?, true);
        }
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let [marker, _] = control::unused_markers(messages, extra, template.source())?;
        let text = template.render(messages, extra, &|string| self.control.mark(string, marker))?;
        self.marked_tokens(&text, marker)
    }

    /// As [`Self::chat_tokens`], with a last message that is not finished: the tokens end where
    /// its content does, for the answer to go on from there.
    ///
    /// # Errors
    /// As [`Self::chat_tokens`]; if the last message has no text, or the template leaves it out.
    pub fn continued_tokens(
        &self,
        messages: &Json,
        extra: &Map<String, Json>,
    ) -> Result<Vec<u32>, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let [marker, end] = control::unused_markers(messages, extra, template.source())?;
        let mut messages = messages.clone();
        match messages.as_array_mut().and_then(|all| all.last_mut()?.get_mut("content")) {
            Some(Json::String(content)) => content.push(end),
            _ => return Err(TextError::NotContinued),
        }
        let mut extra = extra.clone();
        extra.insert("add_generation_prompt".to_owned(), Json::Bool(false));
        let text = template.render(&messages, &extra, &|string| self.control.mark(string, marker))?;
        let end = text.rfind(end).ok_or(TextError::NotContinued)?;
        self.marked_tokens(&text[..end], marker)
    }

    /// The tokens of a rendered conversation whose spelled control tokens are marked.
    fn marked_tokens(&self, text: &str, marker: char) -> Result<Vec<u32>, TextError> {
        let mut tokens = Vec::new();
        for piece in control::pieces(self.parsing.tokenizer(), text) {
            match piece {
                control::Piece::Token(token) => tokens.push(token),
                control::Piece::Text(text) => tokens.extend(self.encode(&text.replace(marker, ""), false)?),
            }
        }
        Ok(tokens)
    }

    /// Chat messages as text, in the model's template.
    ///
    /// # Errors
    /// As [`Self::chat_tokens`].
    pub fn render(&self, messages: &Json, extra: &Map<String, Json>) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        template.render(messages, extra, &|string| string.to_owned())
    }

    /// Whether the chat template reads this variable.
    #[must_use]
    pub fn template_reads(&self, variable: &str) -> bool {
        self.template.as_ref().is_some_and(|template| template.reads(variable))
    }

    /// The chat template as its author wrote it.
    #[must_use]
    pub fn template_source(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// The token that is spelled like this.
    #[must_use]
    pub fn token_named(&self, name: &str) -> Option<u32> {
        self.parsing.tokenizer().token_to_id(name)
    }

    /// Turns the tokens of one answer into text, one by one.
    #[must_use]
    pub fn detokenizer(self: &Arc<Self>) -> Detokenizer {
        Detokenizer::new(Arc::clone(self))
    }

    /// The text of tokens, control tokens spelled out.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.vocabulary.bytes(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token stands for; none if there is no such token.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.vocabulary.bytes(token).to_vec()
    }

    /// Whether a token steers the model and is no text.
    #[must_use]
    pub fn is_control(&self, token: u32) -> bool {
        self.vocabulary.is_control(token)
    }

    /// What compiles grammars for this vocabulary. The first call takes as long as loading a tokenizer.
    ///
    /// # Errors
    /// When answers of the model cannot end, or its vocabulary is not usable.
    pub fn grammars(&self) -> Result<&Grammars, GrammarError> {
        self.grammars.get_or_init(|| Grammars::new(self)).as_ref().map_err(Clone::clone)
    }

    /// Every token id is below this.
    #[must_use]
    pub fn vocab_tokens(&self) -> usize {
        self.vocabulary.len()
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos_tokens
    }

    /// Token that begins a text, if the model has one.
    #[must_use]
    pub fn bos_token(&self) -> Option<u32> {
        self.bos_token
    }

    /// Whether a raw prompt is to begin with [`Self::bos_token`]. Chat templates write it themselves.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The longest sequence the model was made for.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Whether there is a chat template.
    #[must_use]
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Texts that end an answer in a chat, beside the tokens that do: what a model that is not
    /// tuned for chat would go on with.
    #[must_use]
    pub fn chat_ends(&self) -> &'static [&'static str] {
        self.template.as_ref().map_or(&[], |template| families::chat_ends(template.source()))
    }

    /// One JSON document that [`Self::from_bytes`] reads; equal texts have equal bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// BLAKE3 hash of [`Self::to_bytes`], as hex.
    #[must_use]
    pub fn digest(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }
}

impl fmt::Debug for ModelText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ModelText")
            .field("vocab_tokens", &self.vocab_tokens())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
