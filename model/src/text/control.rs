//! Keeps control tokens that messages spell out as plain text.
//!
//! Before rendering, a marker character that occurs nowhere is put inside every
//! spelling of a control token in the strings of a request. What is a control
//! token after rendering was therefore written by the template. The marker is
//! removed from the text in between, which is tokenized as plain text.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value as Json};
use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType, Tokenizer};

use super::error::TextError;

/// The spellings of all control tokens.
pub struct Control {
    names: Vec<String>,
    /// With what they begin: nearly always one character.
    firsts: Vec<char>,
}

/// A part of a rendered conversation.
pub enum Piece {
    Token(u32),
    Text(String),
}

// === impl Control ===

impl Control {
    pub fn new(names: impl Iterator<Item = String>) -> Self {
        let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
        let firsts: BTreeSet<char> = names.iter().filter_map(|name| name.chars().next()).collect();
        Self { names, firsts: firsts.into_iter().collect() }
    }

    /// Whether a string of the request spells a control token, or may spell one
    /// together with the string that a template puts after it.
    pub fn spelled_in(&self, messages: &Json, extra: &Map<String, Json>) -> bool {
        self.in_json(messages) || self.in_map(extra)
    }

    fn in_json(&self, json: &Json) -> bool {
        match json {
            Json::String(string) => self.starts(string).next().is_some(),
            Json::Array(items) => items.iter().any(|item| self.in_json(item)),
            Json::Object(map) => self.in_map(map),
            Json::Null | Json::Bool(_) | Json::Number(_) => false,
        }
    }

    fn in_map(&self, map: &Map<String, Json>) -> bool {
        map.iter().any(|(key, value)| self.starts(key).next().is_some() || self.in_json(value))
    }

    /// Offsets at which a control token, or at the end a part of one, is spelled.
    fn starts<'a>(&'a self, string: &'a str) -> impl Iterator<Item = usize> + 'a {
        let candidates = string.char_indices().filter(|(_, character)| self.firsts.contains(character));
        candidates.map(|(offset, _)| offset).filter(|offset| {
            let rest = &string[*offset..];
            self.names.iter().any(|name| rest.starts_with(name) || name.starts_with(rest))
        })
    }

    /// The string with a marker after the first character of every spelling.
    pub fn mark(&self, string: &str, marker: char) -> String {
        let mut marked = String::with_capacity(string.len());
        let mut done = 0;
        for start in self.starts(string) {
            let first = string[start..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&string[done..start + first]);
            marked.push(marker);
            done = start + first;
        }
        marked.push_str(&string[done..]);
        marked
    }
}

/// Two characters for private use that occur in none of these.
pub fn unused_markers(
    messages: &Json,
    extra: &Map<String, Json>,
    template: &str,
) -> Result<[char; 2], TextError> {
    let mut used = HashSet::new();
    used.extend(template.chars());
    collect(messages, &mut used);
    for (key, value) in extra {
        used.extend(key.chars());
        collect(value, &mut used);
    }
    let mut unused = ('\u{E000}'..='\u{F8FF}').filter(|marker| !used.contains(marker));
    unused.next().zip(unused.next()).map(Into::into).ok_or(TextError::NoMarker)
}

fn collect(json: &Json, used: &mut HashSet<char>) {
    match json {
        Json::String(string) => used.extend(string.chars()),
        Json::Array(items) => items.iter().for_each(|item| collect(item, used)),
        Json::Object(map) => {
            for (key, value) in map {
                used.extend(key.chars());
                collect(value, used);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

/// Cuts a text at the control tokens in it.
pub fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<Piece> {
    let cut = tokenizer.get_added_vocabulary().extract_and_normalize(None::<&NormalizerWrapper>, text);
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::None);
    let mut pieces = Vec::new();
    for (text, _, tokens) in splits {
        match tokens {
            Some(tokens) => pieces.extend(tokens.iter().map(|token| Piece::Token(token.id))),
            None => pieces.push(Piece::Text(text.to_owned())),
        }
    }
    pieces
}
