//! The answer to a chat call.

use super::{
    logprobs::ChatLogprobs,
    shapes::{ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage, Envelope, finish_word, stop_reason},
    usage::Usage,
};
use crate::{
    error::ApiError,
    generation::{Delta, Used},
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// Writes it.
pub struct ChatReply {
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

// === impl ChatReply ===

impl ChatReply {
    fn write(
        &self,
        facts: &Facts,
        choice: &ChatChunkChoice<'_>,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        let usage = self.include_usage.then_some(None);
        events.data(&chunk(facts).with(std::slice::from_ref(choice), usage))
    }
}

impl Reply for ChatReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let choices: Vec<_> = answer.choices.iter().zip(0..).map(choice).collect();
        let usage = Usage::of(&answer.used);
        let envelope = Envelope::new("chat.completion", "chatcmpl", facts);
        serde_json::to_vec(&envelope.with(&choices, Some(Some(&usage))))
    }

    /// Says who speaks.
    fn begin(&mut self, facts: &Facts, _: &[Used], events: &mut Events) -> serde_json::Result<()> {
        for index in 0..facts.choices {
            let delta = ChatDelta { role: Some("assistant"), content: Some("") };
            self.write(facts, &ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }, events)?;
        }
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        let index = delta.index;
        if !delta.text.is_empty() || delta.token.is_some() {
            let logprobs = delta.token.is_some().then_some(ChatLogprobs(delta.token.as_slice()));
            let delta = ChatDelta { role: None, content: Some(&delta.text) };
            let choice = ChatChunkChoice { index, delta, logprobs, ..ChatChunkChoice::default() };
            self.write(facts, &choice, events)?;
        }
        let Some(end) = &delta.end else { return Ok(()) };
        let finish_reason = Some(finish_word(end));
        let stop_reason = stop_reason(end);
        let choice = ChatChunkChoice { index, finish_reason, stop_reason, ..ChatChunkChoice::default() };
        self.write(facts, &choice, events)
    }

    fn end(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        if self.include_usage {
            let usage = Usage::of(used);
            events.data(&chunk(facts).with::<()>(&[], Some(Some(&usage))))?;
        }
        events.done();
        Ok(())
    }

    fn fail(&mut self, _: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.data(&error.body())
    }
}

fn chunk(facts: &Facts) -> Envelope<'_> {
    Envelope::new("chat.completion.chunk", "chatcmpl", facts)
}

fn choice((choice, index): (&Choice, u32)) -> ChatChoice<'_> {
    ChatChoice {
        index,
        message: ChatMessage { role: "assistant", content: &choice.text, refusal: None },
        logprobs: (!choice.tokens.is_empty()).then_some(ChatLogprobs(&choice.tokens)),
        finish_reason: choice.end.as_ref().map(finish_word),
        stop_reason: choice.end.as_ref().and_then(stop_reason),
    }
}
