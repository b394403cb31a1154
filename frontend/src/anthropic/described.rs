//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::{error::ErrorBody, reply::Message};
use crate::openapi::{Content, Operation, Schemas};

/// What is served in Anthropic's words.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let refusal = schemas.written::<ErrorBody<'static>>();
    let message = Content::Json(schemas.written::<Message<'static>>());
    let count = Content::Json(schemas.written::<TokenCount>());
    let (body, count_body) = (schemas.read::<MessagesBody>(), schemas.read::<CountBody>());
    vec![
        Operation::post("/v1/messages", "Answers a conversation", body, message, schemas)
            .streaming()
            .refusing(refusal.clone()),
        Operation::post("/v1/messages/count_tokens", "Counts what it would take", count_body, count, schemas)
            .refusing(refusal),
    ]
}

/// A conversation to be answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct MessagesBody {
    #[schemars(flatten)]
    asked: Asked,
    #[schemars(range(min = 1))]
    max_tokens: u32,
    #[schemars(range(min = 0, max = 1))]
    temperature: Option<f32>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    top_k: Option<u32>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    metadata: Option<Metadata>,
    service_tier: Option<String>,
}

/// A conversation to be counted.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CountBody {
    #[schemars(flatten)]
    asked: Asked,
}

#[derive(JsonSchema)]
struct Asked {
    model: String,
    #[schemars(length(min = 1))]
    messages: Vec<Turn>,
    system: Option<Text>,
    thinking: Option<Typed>,
    cache_control: Option<Typed>,
    speed: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<BTreeMap<String, Value>>,
}

/// A message of Anthropic's.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "AnthropicTurn")]
struct Turn {
    role: Role,
    content: Text,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", rename = "AnthropicRole")]
enum Role {
    User,
    Assistant,
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "AnthropicText")]
enum Text {
    Whole(String),
    Blocks(#[schemars(length(min = 1))] Vec<Block>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "AnthropicPart")]
struct Block {
    r#type: BlockType,
    text: String,
    citations: Option<Vec<Value>>,
    cache_control: Option<Typed>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", rename = "AnthropicPartType")]
enum BlockType {
    Text,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Typed {
    r#type: String,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(JsonSchema)]
struct TokenCount {
    input_tokens: usize,
}
