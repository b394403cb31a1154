//! The answer to a call.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    items::{self, Item, Kind},
    store::{KeptResponse, Responses},
};
use crate::{
    error::ApiError,
    generation::{Delta, End, TokenWords, Used},
    openai::logprobs::chat_tokens,
    reply::{Choice, Events, Facts, Reply, Whole, unix_seconds},
};

/// Writes it.
pub struct ResponseReply {
    said: Map<String, Value>,
    keep: Option<Keep>,
    /// Of the next event.
    sequence: u64,
    items: Vec<Item>,
    /// Whether the last item goes on.
    is_open: bool,
    /// Tokens whose text has not come.
    pending: Vec<TokenWords>,
    /// Tokens and the end.
    choice: Choice,
}

/// Where an answer is kept, and behind what.
pub struct Keep {
    pub kept: Arc<Responses>,
    pub tenant: String,
    /// What was said before.
    pub messages: Vec<Value>,
    /// The call's own part of that, as items.
    pub given: Vec<Value>,
}

/// How an answer stands.
struct Standing<'a> {
    status: &'static str,
    output: Vec<Value>,
    /// Tokens used, those of thoughts apart; once it has ended.
    used: Option<(&'a [Used], u32)>,
    error: Value,
}

// === impl ResponseReply ===

impl ResponseReply {
    /// Says `said` back, and keeps the answer if it is to be.
    pub fn new(said: Map<String, Value>, keep: Option<Keep>) -> Self {
        Self {
            said,
            keep,
            sequence: 0,
            items: Vec::new(),
            is_open: false,
            pending: Vec::new(),
            choice: Choice::default(),
        }
    }

    fn emit(&mut self, name: &str, mut event: Value, events: &mut Events) -> serde_json::Result<()> {
        event["type"] = json!(name);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        events.named(name, &event)
    }

    /// An event about the last item.
    fn emit_of_item(&mut self, name: &str, mut event: Value, events: &mut Events) -> serde_json::Result<()> {
        let Some(item) = self.items.last() else { return Ok(()) };
        event["item_id"] = json!(item.id);
        event["output_index"] = json!(self.items.len() - 1);
        if !matches!(item.kind, Kind::Call(_)) {
            event["content_index"] = json!(0);
        }
        self.emit(name, event, events)
    }

    /// The open item of this kind, begun if there is none.
    fn open(
        &mut self,
        kind: Kind,
        name: Option<&str>,
        facts: &Facts,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        if self.is_open && self.items.last().is_some_and(|item| item.kind == kind) {
            return Ok(());
        }
        self.close("completed", events)?;
        let item = Item::new(kind, self.items.len(), facts);
        let item = Item { name: name.unwrap_or_default().to_owned(), ..item };
        let added = json!({ "output_index": self.items.len(), "item": item.begun() });
        let part = item.part();
        self.items.push(item);
        self.is_open = true;
        self.emit("response.output_item.added", added, events)?;
        if matches!(kind, Kind::Call(_)) {
            return Ok(());
        }
        self.emit_of_item("response.content_part.added", json!({ "part": part }), events)
    }

    fn close(&mut self, status: &str, events: &mut Events) -> serde_json::Result<()> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let Some(item) = self.items.last_mut() else { return Ok(()) };
        if item.kind == Kind::Text {
            item.tokens.extend(pending);
        }
        let (kind, part) = (item.kind, item.part());
        let done = json!({ "output_index": self.items.len() - 1, "item": self.items[self.items.len() - 1].ended(status) });
        let item = &self.items[self.items.len() - 1];
        let (name, event) = match kind {
            Kind::Thoughts => ("response.reasoning_text.done", json!({ "text": item.text })),
            Kind::Text => {
                let logprobs = chat_tokens(&item.tokens);
                ("response.output_text.done", json!({ "text": item.text, "logprobs": logprobs }))
            }
            Kind::Call(_) => (
                "response.function_call_arguments.done",
                json!({ "arguments": item.text, "name": item.name }),
            ),
        };
        self.emit_of_item(name, event, events)?;
        if !matches!(kind, Kind::Call(_)) {
            self.emit_of_item("response.content_part.done", json!({ "part": part }), events)?;
        }
        self.emit("response.output_item.done", done, events)
    }

    /// Adds to the open item.
    fn add(&mut self, piece: &str, events: &mut Events) -> serde_json::Result<()> {
        let Some(item) = self.items.last_mut() else { return Ok(()) };
        item.text.push_str(piece);
        match item.kind {
            Kind::Thoughts => {
                self.emit_of_item("response.reasoning_text.delta", json!({ "delta": piece }), events)
            }
            Kind::Text => {
                let tokens = std::mem::take(&mut self.pending);
                let event = json!({ "delta": piece, "logprobs": chat_tokens(&tokens) });
                item.tokens.extend(tokens);
                self.emit_of_item("response.output_text.delta", event, events)
            }
            Kind::Call(_) => {
                self.emit_of_item("response.function_call_arguments.delta", json!({ "delta": piece }), events)
            }
        }
    }

    fn object(&self, facts: &Facts, standing: Standing<'_>) -> Value {
        let Standing { status, output, used, error } = standing;
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let mut object = json!({
            "id": id(facts),
            "object": "response",
            "created_at": facts.created,
            "completed_at": (status == "completed").then(unix_seconds),
            "status": status,
            "error": error,
            "incomplete_details": incomplete,
            "model": facts.model,
            "output": output,
            "usage": used.map(|(used, thoughts)| usage(used, thoughts)),
        });
        for (name, value) in &self.said {
            object[name] = value.clone();
        }
        object
    }

    /// The answer at its end, which is kept if it is to be.
    fn ended(&self, facts: &Facts, (items, choice): (&[Item], &Choice), used: &[Used]) -> Value {
        let status = status(choice);
        let last = items.len().saturating_sub(1);
        let output = items.iter().enumerate();
        let output =
            output.map(|(at, item)| item.ended(if at == last { status } else { "completed" })).collect();
        let used = Some((used, choice.thought_tokens));
        let response = self.object(facts, Standing { status, output, used, error: Value::Null });
        if let Some(Keep { kept, tenant, messages, given }) = &self.keep {
            let messages = messages.iter().cloned().chain([items::message(items)]).collect();
            let (given, response) = (given.clone(), response.clone());
            kept.keep(tenant, &id(facts), KeptResponse { messages, given, response });
        }
        response
    }
}

impl Reply for ResponseReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let Some(choice) = answer.choices.first() else { return Ok(Vec::new()) };
        let items = Item::all(choice, facts);
        serde_json::to_vec(&self.ended(facts, (&items, choice), &answer.used))
    }

    fn begin(&mut self, facts: &Facts, _: &[Used], events: &mut Events) -> serde_json::Result<()> {
        let standing = || Standing { status: "in_progress", output: vec![], used: None, error: Value::Null };
        let response = self.object(facts, standing());
        self.emit("response.created", json!({ "response": response }), events)?;
        self.emit("response.in_progress", json!({ "response": response }), events)
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        self.choice.note(delta);
        self.pending.extend(delta.token.clone());
        if !delta.thoughts.is_empty() {
            self.open(Kind::Thoughts, None, facts, events)?;
            self.add(&delta.thoughts, events)?;
            self.pending.clear();
        }
        if !delta.text.is_empty() {
            self.open(Kind::Text, None, facts, events)?;
            self.add(&delta.text, events)?;
        }
        for part in &delta.calls {
            self.open(Kind::Call(part.index), part.name.as_deref(), facts, events)?;
            if !part.arguments.is_empty() {
                self.add(&part.arguments, events)?;
            }
            self.pending.clear();
        }
        Ok(())
    }

    fn end(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        if self.items.is_empty() {
            self.open(Kind::Text, None, facts, events)?;
        }
        let status = status(&self.choice);
        self.close(status, events)?;
        let response = self.ended(facts, (&self.items, &self.choice), used);
        self.emit(&format!("response.{status}"), json!({ "response": response }), events)
    }

    fn fail(&mut self, facts: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        let output = self.items.iter().map(|item| item.ended("incomplete")).collect();
        let error = json!({ "code": "server_error", "message": error.to_string() });
        let response = self.object(facts, Standing { status: "failed", output, used: None, error });
        self.emit("response.failed", json!({ "response": response }), events)
    }
}

fn id(facts: &Facts) -> String {
    format!("resp_{}", facts.id)
}

fn status(choice: &Choice) -> &'static str {
    if choice.end == Some(End::Length) { "incomplete" } else { "completed" }
}

fn usage(used: &[Used], thoughts: u32) -> Value {
    let sum = |part: fn(&Used) -> u32| used.iter().map(part).sum::<u32>();
    let (input, output) = (sum(|used| used.prompt_tokens), sum(|used| used.completion_tokens));
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": sum(|used| used.cached_tokens) },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": thoughts },
        "total_tokens": input + output,
    })
}
