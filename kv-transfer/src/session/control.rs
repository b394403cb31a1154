//! Numbered control messages of one session, in both directions.

use std::collections::VecDeque;

use baton_protocol::{
    HandoffId, SessionId,
    wire::{self, Control, control::Message},
};

use crate::SessionError;

/// Messages that may wait for a peer that does not read; beyond, the session ends.
const MAX_WAITING: usize = 1 << 16;

/// Messages on their way out. Numbers are given where messages are made, under
/// the session's lock, so that they agree with the state they speak of.
pub struct Outbox {
    session: SessionId,
    number: u64,
    waiting: VecDeque<Control>,
}

/// What came in so far.
pub struct Inbox {
    session: SessionId,
    number: u64,
}

/// The first message of a stream: it has no session yet.
pub fn opening(message: Message) -> Control {
    Control { session: 0, number: 1, message: Some(message) }
}

/// The handoff that a message is about; none for messages about the session.
pub fn handoff_of(message: &Message) -> Result<Option<HandoffId>, SessionError> {
    let id: &Option<wire::HandoffId> = match message {
        Message::Prefill(m) => &m.id,
        Message::Queued(m) => &m.id,
        Message::Busy(m) => &m.id,
        Message::Start(m) => &m.id,
        Message::Credit(m) => &m.id,
        Message::Later(m) => &m.id,
        Message::First(m) => &m.id,
        Message::Fin(m) => &m.id,
        Message::Commit(m) => &m.id,
        Message::Nack(m) => &m.id,
        Message::Abort(m) => &m.id,
        Message::Quiesced(m) => &m.id,
        _ => return Ok(None),
    };
    match id.clone().map(HandoffId::try_from) {
        Some(Ok(id)) => Ok(Some(id)),
        _ => Err(SessionError::down("a message without a handoff id")),
    }
}

// === impl Outbox ===

impl Outbox {
    /// Goes on after HELLO or WELCOME, which was number 1.
    pub fn new(session: SessionId) -> Self {
        Self { session, number: 1, waiting: VecDeque::new() }
    }

    /// Adds a message; its number.
    pub fn push(&mut self, message: Message) -> u64 {
        self.number += 1;
        self.waiting.push_back(Control {
            session: self.session.0,
            number: self.number,
            message: Some(message),
        });
        self.number
    }

    /// The next one to be sent.
    pub fn pop(&mut self) -> Option<Control> {
        self.waiting.pop_front()
    }

    /// Whether the peer still keeps up.
    pub fn check(&self) -> Result<(), SessionError> {
        if self.waiting.len() > MAX_WAITING {
            return Err(SessionError::down("the peer does not read its control messages"));
        }
        Ok(())
    }
}

// === impl Inbox ===

impl Inbox {
    /// Goes on after HELLO or WELCOME, which was number 1.
    pub fn new(session: SessionId) -> Self {
        Self { session, number: 1 }
    }

    /// The message, if it is of this session and the next one.
    pub fn take(&mut self, control: Control) -> Result<Message, SessionError> {
        if control.session != self.session.0 {
            return Err(SessionError::down(format!("message of session {:016x}", control.session)));
        }
        if control.number != self.number + 1 {
            let (found, expected) = (control.number, self.number + 1);
            return Err(SessionError::down(format!("message {found} instead of {expected}")));
        }
        self.number += 1;
        control
            .message
            .ok_or_else(|| SessionError::down("a message of a kind that this version does not know"))
    }

    /// The number of the latest message.
    pub fn number(&self) -> u64 {
        self.number
    }
}
