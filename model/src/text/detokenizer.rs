//! Tokens to text, one by one, never half a character.

use std::sync::Arc;

use super::ModelText;

/// Turns the tokens of one answer into text. Control tokens are no text and are
/// left out unless asked for.
pub struct Detokenizer {
    text: Arc<ModelText>,
    /// Whether control tokens are spelled out.
    spells_control: bool,
    /// Control tokens that are spelled out anyhow.
    spelled: Vec<u32>,
    /// The start of a character whose end has not come: at most three bytes.
    pending: Vec<u8>,
}

// === impl Detokenizer ===

impl Detokenizer {
    pub(super) fn new(text: Arc<ModelText>) -> Self {
        Self { text, spells_control: false, spelled: Vec::new(), pending: Vec::new() }
    }

    /// Spells control tokens out, as [`ModelText::decode`] does.
    #[must_use]
    pub fn spelling_control(self) -> Self {
        Self { spells_control: true, ..self }
    }

    /// Spells out the tokens of these names, whatever they are.
    #[must_use]
    pub fn spelling(self, names: &[&str]) -> Self {
        let spelled = names.iter().filter_map(|name| self.text.token_named(name)).collect();
        Self { spelled, ..self }
    }

    /// Takes the next token; returns the characters that are whole now.
    /// Bytes that can never become a character are returned as U+FFFD.
    #[must_use]
    pub fn push(&mut self, token: u32) -> String {
        let spells = self.spells_control || self.spelled.contains(&token);
        if !spells && self.text.is_control(token) {
            return String::new();
        }
        self.pending.extend_from_slice(self.text.vocabulary.bytes(token));
        let mut whole = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            let broken = chunk.invalid();
            let is_last = done + chunk.valid().len() + broken.len() == self.pending.len();
            whole.push_str(chunk.valid());
            done += chunk.valid().len();
            if is_last && may_continue(broken) {
                break;
            }
            if !broken.is_empty() {
                whole.push(char::REPLACEMENT_CHARACTER);
                done += broken.len();
            }
        }
        self.pending.drain(..done);
        whole
    }

    /// What is left after the last token: U+FFFD for a character that never ended.
    #[must_use]
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether these bytes are the start of a character.
fn may_continue(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}
