//! What the sending side needs from an engine.

use std::{ops::Range, sync::Arc, time::Duration};

use baton_protocol::{Failure, KvSource, Token};
use tokio::sync::mpsc;

pub use crate::handoff::{PrefillJob, returned::Returned};

/// Runs prompts. Implemented by the prefill node over its engine.
pub trait Prefiller: Send + Sync + 'static {
    /// Takes a prompt without waiting. Progress goes into the channel, which is
    /// bounded: a slow reader slows the prompt down.
    ///
    /// # Errors
    /// When there is no room now.
    fn start(&self, job: PrefillJob, progress: mpsc::Sender<Progress>) -> Result<PrefillGuard, BusyReason>;

    /// A decode node has KV that may be fetched for the next turn. It is good
    /// only for later, so whoever does not want it does nothing.
    fn returned(&self, _kv: Returned) {}

    /// What a prompt taken now would wait for; told to the receiver.
    fn queue(&self) -> Queue {
        Queue::default()
    }
}

/// Keeps a prompt running; dropping it cancels what is not yet computed.
pub type PrefillGuard = Box<dyn Send>;

/// A prompt's way through the engine, in this order. `Done` and `Failed` end it.
pub enum Progress {
    /// Every page of the prompt is reserved.
    Started {
        /// Tokens of the prompt that need no computing here.
        cached_tokens: u32,
        /// Time from the ask to here.
        queue: Duration,
        /// The pages; holding it pins them.
        source: Arc<dyn KvSource>,
    },
    /// This rectangle is in memory and does not change any more. Rectangles do
    /// not overlap and in the end cover the prompt, cached tokens included.
    Computed {
        /// Which layers.
        layers: Range<u32>,
        /// Absolute token positions.
        tokens: Range<u32>,
    },
    /// One token a sampled choice.
    Sampled {
        /// The tokens.
        tokens: Vec<Token>,
        /// From the first chunk to here.
        prefill: Duration,
    },
    /// Everything was reported.
    Done,
    /// Computing ended early.
    Failed(Failure),
}

/// Why a prompt was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyReason {
    /// When trying again may help.
    pub eta: Duration,
    /// For a person.
    pub reason: String,
}

/// The line before the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Prompts ahead.
    pub position: u32,
    /// Expected wait; zero when unknown.
    pub eta: Duration,
}
