//! Generated text in OpenAI's shapes.
//!
//! - [`stream`]: as server-sent events, one a step
//! - [`whole`]: as one object at the end
//! - [`shapes`]: the objects, borrowed from what is being sent
//! - [`logprobs`], [`usage`]: their inner parts

mod logprobs;
mod shapes;
mod stream;
mod usage;
mod whole;

use std::time::{SystemTime, UNIX_EPOCH};

use baton_protocol::RequestId;

pub use stream::stream;
pub use whole::whole;

/// Which call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completions,
}

/// What every object of an answer begins with.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub kind: Kind,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// Choices of all prompts together.
    pub choices: u32,
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

// === impl Kind ===

impl Kind {
    /// The id of an answer.
    pub fn id(self, request: RequestId) -> String {
        match self {
            Self::Chat => format!("chatcmpl-{request}"),
            Self::Completions => format!("cmpl-{request}"),
        }
    }
}
