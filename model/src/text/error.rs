//! What can be wrong with a text.

/// What can be wrong with a text or with what it is asked to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TextError {
    /// The tokenizer itself cannot be used.
    #[error("the tokenizer cannot be used: {reason}")]
    Tokenizer { reason: String },
    /// A token id beyond the model's vocabulary.
    #[error("the tokenizer has token {token}, but the model has only {vocab_tokens}")]
    Vocabulary { token: u32, vocab_tokens: usize },
    /// A limit on bytes.
    #[error("{what}: {found} is more than the limit of {limit}")]
    Limit { what: &'static str, found: usize, limit: usize },
    /// Bytes that are no text of a model.
    #[error("not the text of a model: {0}")]
    Document(#[from] serde_json::Error),
    /// Bytes of another version.
    #[error("version {found} of the text of a model is not supported (supported: {supported})")]
    Version { found: u32, supported: u32 },
    /// The tokenizer failed on this text.
    #[error("cannot tokenize: {reason}")]
    Encode { reason: String },
    /// The model was not made for chat.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The template cannot be compiled.
    #[error("the chat template cannot be used: {reason}")]
    TemplateSyntax { reason: String },
    /// The template refuses these messages.
    #[error("the chat template refuses the messages: {message}")]
    TemplateRefused { message: String },
    /// The template ran for too long or wrote too much.
    #[error("the chat template exceeds its limit on {what}")]
    TemplateLimit { what: &'static str },
    /// The template failed on these messages.
    #[error("the chat template failed: {reason}")]
    Template { reason: String },
    /// A variable that the caller may not set.
    #[error("`{name}` is not a variable of the chat template that can be set")]
    ReservedVariable { name: String },
    /// There is nothing to go on from.
    #[error("the last message has no text that the chat template shows")]
    NotContinued,
    /// The messages use every character that could mark their control tokens.
    #[error("the messages use all private characters of Unicode")]
    NoMarker,
}

// === impl TextError ===

impl TextError {
    /// Whether other messages would have worked: the caller's fault, not the model's.
    #[must_use]
    pub fn is_request(&self) -> bool {
        match self {
            Self::Tokenizer { .. }
            | Self::Vocabulary { .. }
            | Self::Document(_)
            | Self::Version { .. }
            | Self::TemplateSyntax { .. } => false,
            Self::Limit { .. }
            | Self::Encode { .. }
            | Self::NoTemplate
            | Self::TemplateRefused { .. }
            | Self::TemplateLimit { .. }
            | Self::Template { .. }
            | Self::ReservedVariable { .. }
            | Self::NotContinued
            | Self::NoMarker => true,
        }
    }
}
