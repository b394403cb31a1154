//! The answer to a messages call.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::ErrorBody;
use crate::{
    error::ApiError,
    generation::{Delta, End, Used},
    parts::Call,
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// Writes it.
#[derive(Default)]
pub struct MessageReply {
    end: Option<End>,
    /// Blocks that were begun; the last one is open.
    blocks: u32,
    /// What the open block holds: a call by its number.
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call(u32),
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub struct Message<'a> {
    id: String,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: Usage,
}

/// Tokens used. Those that were cached are not among the input's.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnthropicUsage")]
struct Usage {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

// === impl MessageReply ===

impl MessageReply {
    /// Adds to the open block, or to a new one of this kind.
    fn add(
        &mut self,
        kind: Kind,
        empty: &Value,
        delta: &Value,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        if self.open != Some(kind) {
            self.close(events)?;
            let index = self.blocks;
            let start = json!({ "type": "content_block_start", "index": index, "content_block": empty });
            events.named("content_block_start", &start)?;
            (self.open, self.blocks) = (Some(kind), index + 1);
        }
        if delta.is_null() {
            return Ok(());
        }
        let index = self.blocks - 1;
        let event = json!({ "type": "content_block_delta", "index": index, "delta": delta });
        events.named("content_block_delta", &event)
    }

    fn close(&mut self, events: &mut Events) -> serde_json::Result<()> {
        if self.open.take().is_none() {
            return Ok(());
        }
        let index = self.blocks - 1;
        events.named("content_block_stop", &json!({ "type": "content_block_stop", "index": index }))
    }
}

impl Reply for MessageReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let choice = answer.choices.first();
        let end = choice.and_then(|choice| choice.end.as_ref());
        let message = Message {
            content: choice.map(|choice| blocks(facts, choice)).unwrap_or_default(),
            stop_reason: end.map(stop_reason),
            stop_sequence: end.and_then(stop_sequence),
            ..Message::empty(facts, &answer.used)
        };
        serde_json::to_vec(&message)
    }

    fn begin(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        let message = Message::empty(facts, used);
        events.named("message_start", &json!({ "type": "message_start", "message": message }))
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        if let Some(end) = &delta.end {
            self.end = Some(end.clone());
        }
        if !delta.thoughts.is_empty() {
            let thoughts = json!({ "type": "thinking_delta", "thinking": delta.thoughts });
            self.add(Kind::Thinking, &thinking(""), &thoughts, events)?;
        }
        if !delta.text.is_empty() {
            let words = json!({ "type": "text_delta", "text": delta.text });
            self.add(Kind::Text, &text(""), &words, events)?;
        }
        for part in &delta.calls {
            let name = part.name.as_deref().unwrap_or_default();
            let empty = tool_use(&facts.call_id(delta.index, part.index), name, &json!({}));
            let piece = json!({ "type": "input_json_delta", "partial_json": part.arguments });
            let piece = if part.arguments.is_empty() { Value::Null } else { piece };
            self.add(Kind::Call(part.index), &empty, &piece, events)?;
        }
        Ok(())
    }

    fn end(&mut self, _: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        if self.blocks == 0 {
            self.add(Kind::Text, &text(""), &Value::Null, events)?;
        }
        self.close(events)?;
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

/// The parts of a whole answer; there is one at least.
fn blocks(facts: &Facts, choice: &Choice) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !choice.thoughts.is_empty() {
        blocks.push(thinking(&choice.thoughts));
    }
    if !choice.text.is_empty() || choice.calls.is_empty() {
        blocks.push(text(&choice.text));
    }
    let call = |(call, number): (&Call, u32)| {
        // Cut off in the middle it is no JSON.
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        tool_use(&facts.call_id(0, number), &call.name, &input)
    };
    blocks.extend(choice.calls.iter().zip(0..).map(call));
    blocks
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// Nobody signs thoughts here.
fn thinking(thoughts: &str) -> Value {
    json!({ "type": "thinking", "thinking": thoughts, "signature": "" })
}

fn tool_use(id: &str, name: &str, input: &Value) -> Value {
    json!({ "type": "tool_use", "id": id, "name": name, "input": input })
}

fn stop_reason(end: &End) -> &'static str {
    match end {
        End::Model => "end_turn",
        End::Calls => "tool_use",
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
            content: Vec::new(),
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
