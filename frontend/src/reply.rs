//! The way of an answer to the client, in whatever words.
//!
//! - [`stream`]: as server-sent events, one a step
//! - [`whole`]: as one object at the end
//! - [`timing`]: where its time went, beside either

mod stream;
mod timing;
mod whole;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use baton_model::ModelText;
use baton_protocol::{Request, RequestId};
use serde::Serialize;

use crate::{
    ask::{Ask, Tier},
    error::ApiError,
    generation::{Delta, Used},
};

pub use stream::stream;
pub use timing::SERVER_TIMING;
pub use whole::{Choice, Whole, whole};

/// How a dialect writes the answer to one call.
pub trait Reply: Send {
    /// The whole answer as JSON.
    ///
    /// # Errors
    /// When it cannot be written.
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>>;

    /// What comes before the first step; `used` so far.
    ///
    /// # Errors
    /// When it cannot be written.
    fn begin(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()>;

    /// One step. A step that shows nothing writes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()>;

    /// What comes after the last step.
    ///
    /// # Errors
    /// When it cannot be written.
    fn end(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()>;

    /// That there is no more, and why.
    ///
    /// # Errors
    /// When it cannot be written.
    fn fail(&mut self, facts: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()>;
}

/// What a reply may say about its call.
pub struct Facts {
    pub id: RequestId,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub text: Arc<ModelText>,
    /// With which the first prompt's answers are drawn.
    pub seed: u64,
    /// Choices of all prompts together.
    pub choices: u32,
    /// Most tokens of a choice of the first prompt.
    pub max_tokens: u32,
    /// Of a prompt's choices only this many are shown, the likeliest first.
    pub best: Option<u32>,
    pub prompts: u32,
    /// The tier of service, if the call says one.
    pub tier: Option<Tier>,
}

/// Server-sent events that are to be sent next.
#[derive(Default)]
pub struct Events(Vec<u8>);

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

// === impl Facts ===

impl Facts {
    /// Of a call that became these requests, at least one.
    pub fn of(ask: &Ask, requests: &[Request], text: &Arc<ModelText>) -> Option<Self> {
        let first = requests.first()?;
        Some(Self {
            id: first.id,
            created: unix_seconds(),
            model: first.model.clone(),
            text: Arc::clone(text),
            seed: first.sampling.seed,
            choices: requests.iter().map(|request| request.choices).sum(),
            max_tokens: first.stop.max_tokens,
            best: ask.parameters.best,
            prompts: requests.len() as u32,
            tier: ask.parameters.tier,
        })
    }
}

impl Facts {
    /// What a call of a tool is named by: nine letters and digits, which every template takes.
    pub fn call_id(&self, choice: u32, call: u32) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let numbers = u128::from(choice) << 32 | u128::from(call);
        // Distinct for the calls of a request, and as random as the request's id.
        let mut rest = self.id.0.wrapping_add(numbers.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % 36_u128.pow(9);
        let digit = |_| {
            let digit = DIGITS[(rest % 36) as usize];
            rest /= 36;
            char::from(digit)
        };
        (0..9).map(digit).collect()
    }
}

// === impl Events ===

impl Events {
    /// An event without a name.
    ///
    /// # Errors
    /// When the object cannot be written as JSON.
    pub fn data(&mut self, object: &impl Serialize) -> serde_json::Result<()> {
        // JSON has no raw line feed, so one `data:` line is enough.
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, object)?;
        self.0.extend_from_slice(b"\n\n");
        Ok(())
    }

    /// An event with a name.
    ///
    /// # Errors
    /// When the object cannot be written as JSON.
    pub fn named(&mut self, name: &str, object: &impl Serialize) -> serde_json::Result<()> {
        self.0.extend_from_slice(format!("event: {name}\n").as_bytes());
        self.data(object)
    }

    /// All of them so far.
    #[cfg(any(test, fuzzing))]
    pub fn written(&self) -> &[u8] {
        &self.0
    }

    /// The mark with which OpenAI ends a stream.
    pub fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    #[cfg(test)]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
