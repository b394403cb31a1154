//! The parts of an answer: thoughts, text, and calls of tools.
//!
//! A model writes all of them as one text, in a form of its own. It is read as it comes, a
//! piece at a time; where the pieces begin and end does not matter, and what turns out to be
//! no call is text.
//!
//! - [`form`]: how models write
//! - [`thoughts`]: what is thought before the answer
//! - [`calls`]: calls in the rest, with [`object`] for the JSON that they are

mod calls;
mod form;
mod object;
#[cfg(test)]
mod tests;
mod thoughts;

use std::sync::Arc;

use calls::CallReader;
pub use form::{CallForm, Form, ends_thinking, thinks};
use thoughts::ThoughtReader;

/// What became certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub thoughts: String,
    pub text: String,
    pub calls: Vec<CallPart>,
}

/// A piece of a call. The first of each call has its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPart {
    /// Among the calls of its choice.
    pub index: u32,
    pub name: Option<String>,
    /// A piece of the arguments, which are JSON.
    pub arguments: String,
}

/// A whole call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub arguments: String,
}

/// Reads the answer of one choice.
#[derive(Clone, Debug, Default)]
pub struct PartReader {
    thoughts: Option<ThoughtReader>,
    calls: Option<CallReader>,
}

// === impl PartReader ===

impl PartReader {
    /// For answers in this form; only tools of these names can be called.
    pub fn new(form: Form, names: &Arc<[String]>) -> Self {
        Self {
            thoughts: form.thinks.then(|| ThoughtReader::new(form.begins_thinking)),
            calls: form.calls.map(|form| CallReader::new(form, Arc::clone(names))),
        }
    }

    /// Control tokens that are parts of an answer's form, by name.
    pub fn marks(&self) -> &'static [&'static str] {
        if self.thoughts.is_some() || self.calls.is_some() { &form::MARKS } else { &[] }
    }

    /// Whether a call has begun.
    pub fn has_called(&self) -> bool {
        self.calls.as_ref().is_some_and(CallReader::has_called)
    }

    /// Takes the next piece of text; `is_last` at the end of the answer.
    pub fn push(&mut self, piece: &str, is_last: bool) -> Parts {
        let mut parts = Parts::default();
        let text = match &mut self.thoughts {
            Some(reader) => reader.push(piece, is_last, &mut parts.thoughts),
            None => piece.to_owned(),
        };
        match &mut self.calls {
            Some(reader) => reader.push(&text, is_last, &mut parts),
            None => parts.text = text,
        }
        parts
    }
}

// === impl Parts ===

impl Parts {
    fn argument(&mut self, index: u32, arguments: &str) {
        match self.calls.last_mut() {
            Some(last) if last.index == index => last.arguments.push_str(arguments),
            _ => self.calls.push(CallPart { index, name: None, arguments: arguments.to_owned() }),
        }
    }
}

/// How much of the end of `text` may become `mark`, in bytes.
fn begun(text: &str, mark: &str) -> usize {
    let longest = text.len().min(mark.len().saturating_sub(1));
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&mark.as_bytes()[..*length])).unwrap_or(0)
}
