//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field, and some answers written so")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use crate::{
    openai::Turn,
    openapi::{Content, Operation, Schemas},
};

/// What is served in vLLM's words alone.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let (body, text) = (schemas.read::<DetokenizeBody>(), Content::Json(schemas.written::<Detokenized>()));
    let version = Content::Json(schemas.written::<Version>());
    let nothing = Content::Text("text/plain");
    let forgets = "Forgets what prefix caches hold; refused with 403 where callers have API keys";
    let load = Content::Json(schemas.written::<Load>());
    vec![
        Operation::post("/detokenize", "Tokens as text", body, text, schemas),
        Operation::get("/version", "Of this program", version, schemas),
        Operation::get("/load", "Calls for answers that have not ended", load, schemas),
        Operation::act("/reset_prefix_cache", forgets, nothing, schemas),
    ]
}

/// Text to be tokenized.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TokenizeBody {
    model: Option<String>,
    prompt: String,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

/// A conversation to be tokenized.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TokenizeChatBody {
    model: Option<String>,
    #[schemars(length(min = 1))]
    messages: Vec<Turn>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    tools: Option<Vec<BTreeMap<String, Value>>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

/// Tokens of a text.
#[derive(JsonSchema)]
pub struct Tokens {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Tokens to be text again.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct DetokenizeBody {
    model: Option<String>,
    #[schemars(length(min = 1))]
    tokens: Vec<u32>,
}

#[derive(JsonSchema)]
struct Detokenized {
    prompt: String,
}

#[derive(JsonSchema)]
struct Version {
    version: String,
}

#[derive(JsonSchema)]
struct Load {
    server_load: i64,
}
