//! The answer to a messages call.

use serde::Serialize;
use serde_json::json;

use super::error::ErrorBody;
use crate::{
    error::ApiError,
    generation::{Delta, End, Used},
    reply::{Events, Facts, Reply, Whole},
};

/// Writes it.
#[derive(Default)]
pub struct MessageReply {
    end: Option<End>,
}

#[derive(Serialize)]
struct Message<'a> {
    id: String,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: &'a [Block<'a>],
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: Usage,
}

#[derive(Serialize)]
struct Block<'a> {
    r#type: &'static str,
    text: &'a str,
}

/// Tokens used. Those that were cached are not among the input's.
#[derive(Serialize)]
struct Usage {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

// === impl MessageReply ===

impl Reply for MessageReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let choice = answer.choices.first();
        let end = choice.and_then(|choice| choice.end.as_ref());
        let text = choice.map_or("", |choice| &choice.text);
        let message = Message {
            content: &[Block { r#type: "text", text }],
            stop_reason: end.map(stop_reason),
            stop_sequence: end.and_then(stop_sequence),
            ..Message::empty(facts, &answer.used)
        };
        serde_json::to_vec(&message)
    }

    fn begin(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        let message = Message::empty(facts, used);
        events.named("message_start", &json!({ "type": "message_start", "message": message }))?;
        let start = json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } });
        events.named("content_block_start", &start)
    }

    fn step(&mut self, _: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        if let Some(end) = &delta.end {
            self.end = Some(end.clone());
        }
        if delta.text.is_empty() {
            return Ok(());
        }
        let text = json!({ "type": "text_delta", "text": delta.text });
        let event = json!({ "type": "content_block_delta", "index": 0, "delta": text });
        events.named("content_block_delta", &event)
    }

    fn end(&mut self, _: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        events.named("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 }))?;
        let end = self.end.as_ref();
        let delta =
            json!({ "stop_reason": end.map(stop_reason), "stop_sequence": end.and_then(stop_sequence) });
        let event = json!({ "type": "message_delta", "delta": delta, "usage": Usage::of(used) });
        events.named("message_delta", &event)?;
        events.named("message_stop", &json!({ "type": "message_stop" }))
    }

    fn fail(&mut self, facts: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.named("error", &ErrorBody::of(error, &facts.id.to_string()))
    }
}

fn stop_reason(end: &End) -> &'static str {
    match end {
        End::Model => "end_turn",
        End::StopString(_) => "stop_sequence",
        End::Length => "max_tokens",
    }
}

fn stop_sequence(end: &End) -> Option<&str> {
    if let End::StopString(stop) = end { Some(stop) } else { None }
}

// === impl Message ===

impl<'a> Message<'a> {
    /// Before its first word.
    fn empty(facts: &'a Facts, used: &[Used]) -> Self {
        Self {
            id: format!("msg_{}", facts.id),
            r#type: "message",
            role: "assistant",
            model: &facts.model,
            content: &[],
            stop_reason: None,
            stop_sequence: None,
            usage: Usage::of(used),
        }
    }
}

// === impl Usage ===

impl Usage {
    fn of(used: &[Used]) -> Self {
        let sum = |part: fn(&Used) -> u32| used.iter().map(part).sum::<u32>();
        let cached = sum(|used| used.cached_tokens);
        Self {
            input_tokens: sum(|used| used.prompt_tokens).saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: sum(|used| used.completion_tokens),
        }
    }
}
