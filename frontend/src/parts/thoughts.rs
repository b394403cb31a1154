//! What is thought before the answer: between `<think>` and `</think>`.

use super::begun;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Parts thoughts from what follows.
#[derive(Clone, Debug)]
pub struct ThoughtReader {
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but blanks so far.
    Start,
    /// Within, before the first character that is no blank.
    Opening,
    Thinking,
    /// Behind, before the first character that is no blank.
    Closing,
    Done,
}

// === impl ThoughtReader ===

impl ThoughtReader {
    /// `begins`: the prompt has opened the thoughts already.
    pub fn new(begins: bool) -> Self {
        Self { state: if begins { State::Opening } else { State::Start }, held: String::new() }
    }

    /// Takes a piece; adds to `thoughts` and returns what is none.
    pub fn push(&mut self, piece: &str, is_last: bool, thoughts: &mut String) -> String {
        self.held.push_str(piece);
        loop {
            match self.state {
                State::Start => {
                    let rest = self.held.trim_start();
                    if let Some(rest) = rest.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::Opening;
                    } else if !is_last && OPEN.starts_with(rest) {
                        return String::new();
                    } else {
                        self.state = State::Done;
                    }
                }
                State::Opening => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return String::new();
                    }
                    self.state = State::Thinking;
                }
                State::Thinking => {
                    if let Some(end) = self.held.find(CLOSE) {
                        thoughts.push_str(self.held[..end].trim_end());
                        self.held.drain(..end + CLOSE.len());
                        self.state = State::Closing;
                        continue;
                    }
                    // Blanks before the end are no thoughts; a blank may be the last one.
                    let certain = if is_last {
                        self.held.len()
                    } else {
                        self.held[..self.held.len() - begun(&self.held, CLOSE)].trim_end().len()
                    };
                    thoughts.extend(self.held.drain(..certain));
                    return String::new();
                }
                State::Closing => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return String::new();
                    }
                    self.state = State::Done;
                }
                State::Done => return std::mem::take(&mut self.held),
            }
        }
    }
}
