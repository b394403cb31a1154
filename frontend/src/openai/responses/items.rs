//! What an answer consists of.

use serde_json::{Value, json};

use crate::{
    generation::TokenWords,
    openai::logprobs::chat_tokens,
    parts::Call,
    reply::{Choice, Facts},
};

/// Kinds of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Thoughts,
    Text,
    /// A call by its number.
    Call(u32),
}

/// An item, as far as it has come.
#[derive(Clone, Debug)]
pub struct Item {
    pub kind: Kind,
    pub id: String,
    /// Text, thoughts or arguments.
    pub text: String,
    /// Of its text, if they are told.
    pub tokens: Vec<TokenWords>,
    /// Of a call.
    pub name: String,
    pub call_id: String,
}

// === impl Item ===

impl Item {
    /// The answer's item at this place, with nothing in it.
    pub fn new(kind: Kind, at: usize, facts: &Facts) -> Self {
        let (prefix, call_id) = match kind {
            Kind::Thoughts => ("rs", String::new()),
            Kind::Text => ("msg", String::new()),
            Kind::Call(number) => ("fc", facts.call_id(0, number)),
        };
        let id = format!("{prefix}_{}_{at}", facts.id);
        Self { kind, id, text: String::new(), tokens: Vec::new(), name: String::new(), call_id }
    }

    /// All items of a whole answer; there is one at least.
    pub fn all(choice: &Choice, facts: &Facts) -> Vec<Self> {
        let mut items: Vec<Self> = Vec::new();
        if !choice.thoughts.is_empty() {
            let thoughts = Self::new(Kind::Thoughts, 0, facts);
            items.push(Self { text: choice.thoughts.clone(), ..thoughts });
        }
        if !choice.text.is_empty() || choice.calls.is_empty() {
            let text = Self::new(Kind::Text, items.len(), facts);
            let tokens = choice.tokens.iter().skip(choice.before_text).cloned().collect();
            items.push(Self { text: choice.text.clone(), tokens, ..text });
        }
        for (Call { name, arguments }, number) in choice.calls.iter().zip(0..) {
            let call = Self::new(Kind::Call(number), items.len(), facts);
            items.push(Self { text: arguments.clone(), name: name.clone(), ..call });
        }
        items
    }

    /// As it is when it is said that there is one.
    pub fn begun(&self) -> Value {
        match self.kind {
            Kind::Thoughts => json!({
                "id": self.id, "type": "reasoning", "summary": [], "content": [], "status": "in_progress",
            }),
            Kind::Text => json!({
                "id": self.id, "type": "message", "role": "assistant", "content": [], "status": "in_progress",
            }),
            Kind::Call(_) => self.call("in_progress", ""),
        }
    }

    /// As it is at its end.
    pub fn ended(&self, status: &str) -> Value {
        match self.kind {
            Kind::Thoughts => json!({
                "id": self.id, "type": "reasoning", "summary": [], "content": [self.part()], "status": status,
            }),
            Kind::Text => json!({
                "id": self.id, "type": "message", "role": "assistant", "content": [self.part()],
                "status": status,
            }),
            Kind::Call(_) => self.call(status, &self.text),
        }
    }

    /// What is in it; calls have none.
    pub fn part(&self) -> Value {
        match self.kind {
            Kind::Thoughts => json!({ "type": "reasoning_text", "text": self.text }),
            Kind::Text | Kind::Call(_) => json!({
                "type": "output_text", "text": self.text, "annotations": [],
                "logprobs": chat_tokens(&self.tokens),
            }),
        }
    }

    fn call(&self, status: &str, arguments: &str) -> Value {
        json!({
            "id": self.id, "type": "function_call", "call_id": self.call_id, "name": self.name,
            "arguments": arguments, "status": status,
        })
    }
}

/// The message that items are, as templates know it.
pub fn message(items: &[Item]) -> Value {
    let text = |kind: Kind| {
        let of_kind = items.iter().filter(move |item| item.kind == kind);
        of_kind.map(|item| item.text.as_str()).collect::<Vec<_>>().join("\n")
    };
    let mut message = json!({ "role": "assistant", "content": text(Kind::Text) });
    let thoughts = text(Kind::Thoughts);
    if !thoughts.is_empty() {
        message["reasoning_content"] = Value::String(thoughts);
    }
    let calls: Vec<_> = items.iter().filter(|item| matches!(item.kind, Kind::Call(_))).collect();
    let calls = calls.into_iter().map(|item| {
        // Cut off in the middle they are no JSON.
        let arguments: Value = serde_json::from_str(&item.text).unwrap_or_else(|_| json!({}));
        json!({
            "id": item.call_id, "type": "function",
            "function": { "name": item.name, "arguments": arguments },
        })
    });
    let calls: Vec<_> = calls.collect();
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    message
}
