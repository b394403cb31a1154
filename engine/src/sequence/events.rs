//! What comes back from an engine, and the bounded channel it comes through.

use std::{ops::Range, sync::Arc};

use baton_protocol::{Failure, FinishReason, PromptPart, Token};
use parking_lot::Mutex;
use tokio::sync::mpsc;
pub use tokio::sync::mpsc::error::TryRecvError;

use crate::kv::PageRef;

/// One event of a request. After the terminal one (`Prefilled`, `Embedding`,
/// `Failed`, or the last choice's `Finished`) the channel closes.
#[derive(Debug)]
pub enum SequenceEvent {
    /// The pages of all known tokens are reserved. Once, first.
    Started {
        /// Tokens whose KV was there already.
        cached_tokens: usize,
        /// For [`Goal::Prefill`](crate::Goal::Prefill) the pages, held as
        /// [`Hold::Sending`](crate::kv::Hold::Sending) by this event; else empty.
        pages: Vec<PageRef>,
    },
    /// [`Goal::Prefill`](crate::Goal::Prefill) only: KV of this rectangle is in memory.
    Computed {
        /// Which layers.
        layers: Range<u32>,
        /// Which token positions.
        tokens: Range<u32>,
    },
    /// How likely the next tokens of the prompt are, if that was asked for; all parts come before the first token.
    Prompt(PromptPart),
    /// [`Goal::Embed`](crate::Goal::Embed): the vector, of length 1. Terminal.
    Embedding(Vec<f32>),
    /// A token was drawn. Positions count from the first token after the prompt, replayed ones included.
    Token(Token),
    /// A choice ended, after its last token. A stop token that ends it is not emitted.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// [`Goal::Prefill`](crate::Goal::Prefill): everything is computed and drawn.
    Prefilled,
    /// The request failed.
    Failed(Failure),
}

/// The receiving end of a request's events. Dropping it cancels the request.
#[derive(Debug)]
pub struct SequenceEvents {
    events: mpsc::Receiver<SequenceEvent>,
    stopped: Arc<StopList>,
}

/// The engine's end. Never blocks and never drops an event: before a sequence
/// is scheduled, room is asked for all that its step, and one under way before it, can emit.
#[derive(Debug)]
pub(crate) struct Outbox {
    events: mpsc::Sender<SequenceEvent>,
    stopped: Arc<StopList>,
    /// Free places without which nothing is scheduled.
    room: usize,
}

type StopList = Mutex<Vec<u32>>;

/// The two ends for a request of which the steps under way emit fewer than `room`
/// events, with `buffer` more for a reader that falls behind.
pub(crate) fn channel(room: usize, buffer: usize) -> (Outbox, SequenceEvents) {
    let (sender, receiver) = mpsc::channel(room + buffer);
    let stopped = Arc::<StopList>::default();
    (
        Outbox { events: sender, stopped: Arc::clone(&stopped), room },
        SequenceEvents { events: receiver, stopped },
    )
}

// === impl SequenceEvents ===

impl SequenceEvents {
    /// The next event; none after the terminal one.
    pub async fn recv(&mut self) -> Option<SequenceEvent> {
        self.events.recv().await
    }

    /// The next event if there is one.
    ///
    /// # Errors
    /// When there is none yet, or never will be.
    pub fn try_recv(&mut self) -> Result<SequenceEvent, TryRecvError> {
        self.events.try_recv()
    }

    /// The next event, waited for by blocking the thread; not for async code.
    pub fn blocking_recv(&mut self) -> Option<SequenceEvent> {
        self.events.blocking_recv()
    }

    /// Ends one choice without an event of its own; others go on. Events of it
    /// that were on their way may still come.
    pub fn stop_choice(&self, choice: u32) {
        self.stopped.lock().push(choice);
    }
}

// === impl Outbox ===

impl Outbox {
    /// Whether all events of the next step have a place.
    pub(crate) fn has_room(&self) -> bool {
        self.events.capacity() >= self.room
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Choices stopped by the receiver so far.
    pub(crate) fn is_stopped(&self, choice: u32) -> bool {
        self.stopped.lock().contains(&choice)
    }

    /// Whether any choice was stopped by the receiver.
    pub(crate) fn has_stops(&self) -> bool {
        !self.stopped.lock().is_empty()
    }

    /// False when there was no room, which asking for it before a step rules out.
    pub(crate) fn send(&self, event: SequenceEvent) -> bool {
        !matches!(self.events.try_send(event), Err(mpsc::error::TrySendError::Full(_)))
    }
}
