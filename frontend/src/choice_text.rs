//! Tokens of one choice as text: whole characters only, up to a stop.

use std::{collections::HashSet, sync::Arc};

use baton_model::Detokenizer;

use crate::stop_strings::{Released, StopStrings};

/// Turns one choice's tokens into text that may be shown.
pub struct ChoiceText {
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// Tokens that end the answer and are no part of its text.
    silent: Arc<HashSet<u32>>,
}

// === impl ChoiceText ===

impl ChoiceText {
    pub fn new(detokenizer: Detokenizer, stops: StopStrings, silent: Arc<HashSet<u32>>) -> Self {
        Self { detokenizer, stops, silent }
    }

    /// Takes the next token.
    pub fn push(&mut self, token: u32) -> Released {
        if self.silent.contains(&token) {
            return Released::default();
        }
        let piece = self.detokenizer.push(token);
        self.stops.push(&piece)
    }

    /// What is left after the last token. A stop string can still be completed
    /// by the mark that stands for a broken character.
    pub fn finish(&mut self) -> Released {
        let mut last = self.stops.push(&self.detokenizer.finish());
        if last.stopped.is_none() {
            last.text.push_str(&self.stops.finish());
        }
        last
    }
}
