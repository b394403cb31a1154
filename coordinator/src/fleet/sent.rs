//! What this coordinator has sent to a node and has not heard the end of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How much was sent to a node and has not ended, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Requests that decode there, or will.
    pub requests: u64,
    /// Those of them that have had a token.
    pub generating: u64,
    /// Prompt tokens that have no first token yet.
    pub prompt_tokens: u64,
    /// Those of the prompt that was sent first.
    pub first_prompt_tokens: u64,
    /// For how long it has been the first: before, the node was busy with others.
    pub first_prompt_for: Duration,
}

/// Counts what is sent to a node. Pure: the clock is passed in.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: u64,
    generating: u64,
    /// Prompts in the order in which they were sent, by number.
    prompts: BTreeMap<u64, u64>,
    prompt_tokens: u64,
    numbered: u64,
    /// When the first of them became the first.
    first_since: Option<Instant>,
}

/// A ledger that guards write to.
pub(super) type SharedLedger = Arc<Mutex<Ledger>>;

/// Counts one request as decoding on a node until dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    ledger: SharedLedger,
    generates: bool,
}

/// Counts a prompt as sent to a prefill node until dropped.
#[derive(Debug)]
pub(crate) struct SentPrefill {
    ledger: SharedLedger,
    number: u64,
}

// === impl Ledger ===

impl Ledger {
    /// What it comes to.
    pub fn sent(&self, now: Instant) -> Sent {
        let for_how_long = |since| now.saturating_duration_since(since);
        Sent {
            requests: self.requests,
            generating: self.generating,
            prompt_tokens: self.prompt_tokens,
            first_prompt_tokens: self.prompts.first_key_value().map_or(0, |(_, tokens)| *tokens),
            first_prompt_for: self.first_since.map_or(Duration::ZERO, for_how_long),
        }
    }

    /// A request decodes there, or will.
    pub fn occupy(&mut self) {
        self.requests += 1;
    }

    /// One of them has had its first token.
    pub fn generates(&mut self) {
        self.generating += 1;
    }

    /// One of them has ended; `generated`: it has had a token.
    pub fn leave(&mut self, generated: bool) {
        self.requests -= 1;
        self.generating -= u64::from(generated);
    }

    /// A prompt was sent there, of which so many tokens are to be computed; its number.
    pub fn send_prompt(&mut self, tokens: usize, now: Instant) -> u64 {
        let number = self.numbered;
        self.numbered += 1;
        self.prompts.insert(number, tokens as u64);
        self.prompt_tokens += tokens as u64;
        self.first_since.get_or_insert(now);
        number
    }

    /// A prompt has its first token, or never will.
    pub fn prompt_ended(&mut self, number: u64, now: Instant) {
        let was_first = self.prompts.first_key_value().is_some_and(|(first, _)| *first == number);
        self.prompt_tokens -= self.prompts.remove(&number).unwrap_or(0);
        if was_first {
            self.first_since = (!self.prompts.is_empty()).then_some(now);
        }
    }
}

// === impl InFlight ===

impl InFlight {
    pub(super) fn on(ledger: &SharedLedger) -> Self {
        ledger.lock().occupy();
        Self { ledger: Arc::clone(ledger), generates: false }
    }

    /// It has had a token.
    pub(crate) fn generates(&mut self) {
        if !std::mem::replace(&mut self.generates, true) {
            self.ledger.lock().generates();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.ledger.lock().leave(self.generates);
    }
}

// === impl SentPrefill ===

impl SentPrefill {
    pub(super) fn to(ledger: &SharedLedger, tokens: usize) -> Self {
        let number = ledger.lock().send_prompt(tokens, Instant::now());
        Self { ledger: Arc::clone(ledger), number }
    }
}

impl Drop for SentPrefill {
    fn drop(&mut self) {
        self.ledger.lock().prompt_ended(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_prompt_runs_from_when_it_became_the_first() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let ms = |millis| start + Duration::from_millis(millis);
        let first = ledger.send_prompt(100, start);
        let (second, third) = (ledger.send_prompt(50, ms(30)), ledger.send_prompt(7, ms(30)));
        let at = |prompt_tokens, first_prompt_tokens, millis| Sent {
            prompt_tokens,
            first_prompt_tokens,
            first_prompt_for: Duration::from_millis(millis),
            ..Sent::default()
        };
        assert_eq!(ledger.sent(ms(40)), at(157, 100, 40));
        // One behind the first that ends changes nothing of the first.
        ledger.prompt_ended(second, ms(40));
        assert_eq!(ledger.sent(ms(40)), at(107, 100, 40));
        ledger.prompt_ended(first, ms(40));
        assert_eq!(ledger.sent(ms(45)), at(7, 7, 5));
        ledger.prompt_ended(third, ms(45));
        assert_eq!(ledger.sent(ms(50)), Sent::default());
    }

    #[test]
    fn a_request_generates_once_and_until_it_ends() {
        let (ledger, now) = (SharedLedger::default(), Instant::now());
        let (mut one, other) = (InFlight::on(&ledger), InFlight::on(&ledger));
        one.generates();
        one.generates();
        let counts = || {
            let sent = ledger.lock().sent(now);
            (sent.requests, sent.generating)
        };
        assert_eq!(counts(), (2, 1));
        drop(other);
        assert_eq!(counts(), (1, 1));
        drop(one);
        assert_eq!(counts(), (0, 0));
    }
}
