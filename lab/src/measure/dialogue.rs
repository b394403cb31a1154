//! All that was said so far, as a server is told it.

use serde_json::{Value, json};

use super::{Api, MeasureError};
use crate::traffic::{Piece, Vocabulary};

/// A session's prompt so far.
#[derive(Clone, Debug)]
pub enum Dialogue {
    /// Words: who said what.
    Words(Vec<(Speaker, String)>),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Who speaks, in the API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// Whoever made the application.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
}

// === impl Dialogue ===

impl Dialogue {
    /// Nothing was said.
    pub fn new(vocabulary: &Vocabulary) -> Self {
        match vocabulary {
            Vocabulary::Ids { .. } => Self::Ids(Vec::new()),
            Vocabulary::Words { .. } => Self::Words(Vec::new()),
        }
    }

    /// Someone says these pieces.
    ///
    /// # Errors
    /// When they have no ids, but ids are spoken.
    pub fn say(
        &mut self,
        speaker: Speaker,
        pieces: &[Piece],
        vocabulary: &Vocabulary,
    ) -> Result<(), MeasureError> {
        match self {
            Self::Words(said) => {
                let is_start = said.is_empty();
                let texts = pieces.iter().enumerate();
                let text = texts.map(|(index, piece)| vocabulary.text(piece, is_start && index == 0));
                said.push((speaker, text.collect()));
            }
            Self::Ids(ids) => {
                for piece in pieces {
                    ids.extend(vocabulary.ids(piece).ok_or(MeasureError::NoIds { what: "text" })?);
                }
            }
        }
        Ok(())
    }

    /// The server answered.
    ///
    /// # Errors
    /// When ids are spoken: those of an answer are not known.
    pub fn hear(&mut self, answer: String) -> Result<(), MeasureError> {
        match self {
            Self::Words(said) => said.push((Speaker::Assistant, answer)),
            Self::Ids(_) => return Err(MeasureError::NoIds { what: "an answer" }),
        }
        Ok(())
    }

    /// The part of a body that holds it: its key and value.
    ///
    /// # Errors
    /// When chat is asked in ids.
    pub fn body(&self, api: Api) -> Result<(&'static str, Value), MeasureError> {
        match (api, self) {
            (Api::Completions, Self::Ids(ids)) => Ok(("prompt", json!(ids))),
            (Api::Completions, Self::Words(said)) => {
                let texts: String = said.iter().map(|(_, text)| text.as_str()).collect();
                Ok(("prompt", Value::String(texts)))
            }
            (Api::Chat, Self::Words(said)) => {
                let messages = said
                    .iter()
                    .map(|(speaker, text)| json!({"role": speaker.role(), "content": text.trim_start()}));
                Ok(("messages", messages.collect()))
            }
            (Api::Chat, Self::Ids(_)) => Err(MeasureError::NoIds { what: "a chat" }),
        }
    }
}

// === impl Speaker ===

impl Speaker {
    fn role(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}
