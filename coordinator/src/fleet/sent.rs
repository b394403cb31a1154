//! What this coordinator has sent to a node and has not heard the end of.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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

/// Counts what is sent to a node.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    requests: AtomicUsize,
    generating: AtomicUsize,
    prompts: Mutex<Prompts>,
}

/// Prompts in the order in which they were sent, by number.
#[derive(Debug, Default)]
struct Prompts {
    tokens: BTreeMap<u64, u64>,
    sent: u64,
    /// When the first of them became the first.
    first_since: Option<Instant>,
}

/// Counts one request as decoding on a node until dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    ledger: Arc<Ledger>,
    generates: bool,
}

/// Counts a prompt as sent to a prefill node until dropped.
#[derive(Debug)]
pub(crate) struct SentPrefill {
    ledger: Arc<Ledger>,
    number: u64,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> Sent {
        let prompts = self.prompts.lock();
        Sent {
            requests: self.requests() as u64,
            generating: self.generating.load(Ordering::Relaxed) as u64,
            prompt_tokens: prompts.tokens.values().sum(),
            first_prompt_tokens: prompts.tokens.first_key_value().map_or(0, |(_, tokens)| *tokens),
            first_prompt_for: prompts.first_since.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }

    pub(super) fn occupy(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        InFlight { ledger: Arc::clone(self), generates: false }
    }

    pub(super) fn send_prefill(self: &Arc<Self>, tokens: usize) -> SentPrefill {
        let mut prompts = self.prompts.lock();
        let number = prompts.sent;
        prompts.sent += 1;
        prompts.tokens.insert(number, tokens as u64);
        prompts.first_since.get_or_insert_with(Instant::now);
        SentPrefill { ledger: Arc::clone(self), number }
    }
}

// === impl InFlight ===

impl InFlight {
    /// It has had a token.
    pub(crate) fn generates(&mut self) {
        if !std::mem::replace(&mut self.generates, true) {
            self.ledger.generating.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.ledger.requests.fetch_sub(1, Ordering::Relaxed);
        if self.generates {
            self.ledger.generating.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for SentPrefill {
    fn drop(&mut self) {
        let mut prompts = self.ledger.prompts.lock();
        let was_first = prompts.tokens.first_key_value().is_some_and(|(first, _)| *first == self.number);
        prompts.tokens.remove(&self.number);
        if was_first {
            prompts.first_since = (!prompts.tokens.is_empty()).then(Instant::now);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_prompt_runs_from_when_it_became_the_first() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.send_prefill(100);
        advance(Duration::from_millis(30)).await;
        let (second, third) = (ledger.send_prefill(50), ledger.send_prefill(7));
        advance(Duration::from_millis(10)).await;
        let at = |prompt_tokens, first_prompt_tokens, millis| Sent {
            prompt_tokens,
            first_prompt_tokens,
            first_prompt_for: Duration::from_millis(millis),
            ..Sent::default()
        };
        assert_eq!(ledger.sent(), at(157, 100, 40));
        // One behind the first that ends changes nothing of the first.
        drop(second);
        assert_eq!(ledger.sent(), at(107, 100, 40));
        drop(first);
        advance(Duration::from_millis(5)).await;
        assert_eq!(ledger.sent(), at(7, 7, 5));
        drop(third);
        assert_eq!(ledger.sent(), Sent::default());
    }

    #[test]
    fn a_request_generates_once_and_until_it_ends() {
        let ledger = Arc::new(Ledger::default());
        let (mut one, other) = (ledger.occupy(), ledger.occupy());
        one.generates();
        one.generates();
        assert_eq!((ledger.sent().requests, ledger.sent().generating), (2, 1));
        drop(other);
        assert_eq!((ledger.sent().requests, ledger.sent().generating), (1, 1));
        drop(one);
        assert_eq!(ledger.sent(), Sent::default());
    }
}
