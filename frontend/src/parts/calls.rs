//! Calls of tools in a text that comes in pieces.

use std::sync::Arc;

use super::{
    CallForm, CallPart, Parts, begun,
    object::{self, Balance, Head},
};

/// Parts calls from text.
#[derive(Clone, Debug)]
pub struct CallReader {
    form: CallForm,
    /// Of the tools that there are.
    names: Arc<[String]>,
    state: State,
    /// Read and not yet told of.
    held: String,
    /// What introduced the calls that `held` may be; it is text if they are none.
    introduction: String,
    calls: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing but blanks so far.
    Start,
    Text,
    /// Behind a call: blanks are no text until there is some.
    Behind,
    /// Where a call may begin.
    Before,
    /// Within an object that may be one.
    Object,
    /// Within the arguments of one.
    Arguments(Balance),
    /// Behind them, within its object.
    Rest(Balance),
}

/// Whether there is more to read.
enum Step {
    Again,
    Wait,
}

// === impl CallReader ===

impl CallReader {
    pub fn new(form: CallForm, names: Arc<[String]>) -> Self {
        let (held, introduction) = (String::new(), String::new());
        Self { form, names, state: State::Start, held, introduction, calls: 0 }
    }

    pub fn has_called(&self) -> bool {
        self.calls > 0 || matches!(self.state, State::Arguments(_))
    }

    /// Takes a piece.
    pub fn push(&mut self, piece: &str, is_last: bool, parts: &mut Parts) {
        self.held.push_str(piece);
        while let Step::Again = self.step(is_last, parts) {}
    }

    fn step(&mut self, is_last: bool, parts: &mut Parts) -> Step {
        match self.state {
            State::Start => self.start(is_last),
            State::Text => self.text(is_last, parts),
            State::Behind => self.behind(is_last),
            State::Before => self.before(is_last, parts),
            State::Object => self.object(is_last, parts),
            State::Arguments(balance) => self.arguments(balance, parts),
            State::Rest(balance) => self.rest(balance),
        }
    }

    fn start(&mut self, is_last: bool) -> Step {
        let rest = self.held.trim_start();
        if rest.is_empty() && !is_last {
            return Step::Wait;
        }
        let is_call = rest.starts_with('{') || self.form == CallForm::Json && rest.starts_with('[');
        if self.form.is_bare() && is_call {
            let blanks = self.held.len() - rest.len();
            self.introduction = self.held.drain(..blanks).collect();
            self.state = State::Before;
        } else {
            self.state = State::Text;
        }
        Step::Again
    }

    fn text(&mut self, is_last: bool, parts: &mut Parts) -> Step {
        let Some(open) = self.form.open() else {
            parts.text.push_str(&std::mem::take(&mut self.held));
            return Step::Wait;
        };
        if let Some(at) = self.held.find(open) {
            parts.text.extend(self.held.drain(..at));
            self.introduction = self.held.drain(..open.len()).collect();
            self.state = State::Before;
            return Step::Again;
        }
        let open = if is_last { 0 } else { begun(&self.held, open) };
        let certain = self.held.len() - open;
        parts.text.extend(self.held.drain(..certain));
        Step::Wait
    }

    fn behind(&mut self, is_last: bool) -> Step {
        let rest = self.held.trim_start();
        let open = self.form.open().unwrap_or_default();
        if rest.is_empty() || !is_last && !open.is_empty() && open.starts_with(rest) && rest != open {
            if is_last {
                self.held.clear();
            }
            return Step::Wait;
        }
        if !open.is_empty() && rest.starts_with(open) {
            self.held = rest.to_owned();
        }
        self.state = State::Text;
        Step::Again
    }

    /// Passes blanks and what parts calls.
    fn before(&mut self, is_last: bool, parts: &mut Parts) -> Step {
        let form = self.form;
        let rest = self.held.trim_start_matches(|c: char| c.is_whitespace() || form.parts().contains(&c));
        let passed = self.held.len() - rest.len();
        let close = form.close().unwrap_or_default();
        if rest.starts_with('{') {
            self.introduction.extend(self.held.drain(..passed));
            self.state = State::Object;
            return Step::Again;
        }
        let is_behind_call = self.calls > 0 && self.introduction.is_empty();
        if is_behind_call && !close.is_empty() && rest.starts_with(close) {
            self.held.drain(..passed + close.len());
            self.state = State::Behind;
            return Step::Again;
        }
        let may_go_on = rest.is_empty() || is_behind_call && !close.is_empty() && close.starts_with(rest);
        if may_go_on && !is_last {
            return Step::Wait;
        }
        if is_behind_call && rest.is_empty() {
            self.held.clear();
            return Step::Wait;
        }
        if let Some(end) = self.held[..passed].rfind(']').filter(|_| is_behind_call) {
            self.held.drain(..=end);
        }
        self.give_up(parts);
        Step::Again
    }

    fn object(&mut self, is_last: bool, parts: &mut Parts) -> Step {
        match object::head(&self.held) {
            Head::Call { name, end } if self.names.contains(&name) => {
                self.held.drain(..end);
                self.begin(name, String::new(), parts);
                self.state = State::Arguments(Balance::default());
                return Step::Again;
            }
            Head::Open if !is_last => return Step::Wait,
            Head::Open | Head::Call { .. } | Head::Other => {}
        }
        let Some(end) = Balance::default().read(&self.held) else {
            if is_last {
                self.give_up(parts);
                return Step::Again;
            }
            return Step::Wait;
        };
        match object::call(&self.held[..end]).filter(|(name, _)| self.names.contains(name)) {
            Some((name, arguments)) => {
                self.held.drain(..end);
                self.begin(name, arguments, parts);
                self.calls += 1;
                self.state = State::Before;
            }
            None => {
                parts.text.push_str(&std::mem::take(&mut self.introduction));
                parts.text.extend(self.held.drain(..end));
                self.state = State::Text;
            }
        }
        Step::Again
    }

    fn arguments(&mut self, mut balance: Balance, parts: &mut Parts) -> Step {
        let end = balance.read(&self.held);
        let piece: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !piece.is_empty() {
            parts.argument(self.calls, &piece);
        }
        if end.is_none() {
            self.state = State::Arguments(balance);
            return Step::Wait;
        }
        self.calls += 1;
        self.state = State::Rest(Balance::within());
        Step::Again
    }

    /// Other fields of a call say nothing.
    fn rest(&mut self, mut balance: Balance) -> Step {
        let end = balance.read(&self.held);
        self.held.drain(..end.unwrap_or(self.held.len()));
        self.state = if end.is_some() { State::Before } else { State::Rest(balance) };
        if end.is_some() { Step::Again } else { Step::Wait }
    }

    fn begin(&mut self, name: String, arguments: String, parts: &mut Parts) {
        self.introduction.clear();
        parts.calls.push(CallPart { index: self.calls, name: Some(name), arguments });
    }

    /// It is no call: everything is text from here on.
    fn give_up(&mut self, parts: &mut Parts) {
        parts.text.push_str(&std::mem::take(&mut self.introduction));
        self.state = State::Text;
    }
}
