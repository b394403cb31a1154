//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field, and answers written as JSON")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::{InputTokens, PAGE};
use crate::{
    files::{Deleted, List, paging},
    openai::described::Effort,
    openapi::{Content, Operation, Schemas},
};

/// What is served of Responses.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let answer = |schemas: &mut Schemas| Content::Json(schemas.written::<ResponseAnswer>());
    let (made, one) = (answer(schemas), answer(schemas));
    let deleted = Content::Json(schemas.written::<Deleted<'static>>());
    let (body, counted) = (schemas.read::<ResponseBody>(), schemas.read::<CountedBody>());
    let count = Content::Json(schemas.written::<InputTokens>());
    let items = Content::Json(schemas.written::<List<BTreeMap<String, Value>>>());
    let cancelled = answer(schemas);
    vec![
        Operation::post("/v1/responses", "Answers, and keeps the answer", body, made, schemas).streaming(),
        Operation::post(
            "/v1/responses/input_tokens",
            "How many tokens a call would have",
            counted,
            count,
            schemas,
        ),
        Operation::get("/v1/responses/{id}", "An answer that is kept", one, schemas),
        Operation::delete("/v1/responses/{id}", "Deletes it", deleted, schemas),
        Operation::act("/v1/responses/{id}/cancel", "Refused: answers are made at once", cancelled, schemas),
        Operation::get("/v1/responses/{id}/input_items", "What was said in its call", items, schemas)
            .asking(paging(PAGE.1)),
    ]
}

/// What is to be answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseBody {
    model: String,
    input: Input,
    instructions: Option<String>,
    /// An answer that is kept, to go on from.
    previous_response_id: Option<String>,
    /// Whether the answer is kept: true if it is not there.
    store: Option<bool>,
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<ResponseStreamOptions>,
    #[schemars(range(min = 1))]
    max_output_tokens: Option<u32>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f32>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    #[schemars(range(max = 20))]
    top_logprobs: Option<u32>,
    include: Option<Vec<Include>>,
    text: Option<TextForm>,
    reasoning: Option<Reasoning>,
    /// Functions that the model may call.
    tools: Option<Vec<BTreeMap<String, Value>>>,
    /// A word, or the name of a function.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    truncation: Option<String>,
    background: Option<bool>,
    service_tier: Option<String>,
    /// Said back.
    metadata: Option<BTreeMap<String, Value>>,
    /// Said back.
    user: Option<String>,
    /// Said back.
    safety_identifier: Option<String>,
    /// Said back: every prefix is cached.
    prompt_cache_key: Option<String>,
}

/// What would be answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CountedBody {
    model: String,
    input: Input,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    text: Option<TextForm>,
    reasoning: Option<Reasoning>,
    tools: Option<Vec<BTreeMap<String, Value>>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    truncation: Option<String>,
}

/// A text, or items.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Input {
    Text(String),
    Items(#[schemars(length(min = 1))] Vec<InputItem>),
}

/// Something said, called, returned or thought.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum InputItem {
    Said(InputMessage),
    Other(BTreeMap<String, Value>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct InputMessage {
    r#type: Option<String>,
    id: Option<String>,
    status: Option<String>,
    role: InputRole,
    content: InputText,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum InputRole {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum InputText {
    Whole(String),
    Parts(#[schemars(length(min = 1))] Vec<InputPart>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct InputPart {
    r#type: InputPartType,
    text: String,
    annotations: Option<Vec<Value>>,
    logprobs: Option<Vec<Value>>,
}

#[derive(JsonSchema)]
enum InputPartType {
    #[schemars(rename = "input_text")]
    Input,
    #[schemars(rename = "output_text")]
    Output,
    #[schemars(rename = "reasoning_text")]
    Thought,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResponseStreamOptions {
    include_obfuscation: Option<bool>,
}

#[derive(JsonSchema)]
enum Include {
    #[schemars(rename = "message.output_text.logprobs")]
    Logprobs,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TextForm {
    format: Option<BTreeMap<String, Value>>,
    verbosity: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Reasoning {
    effort: Option<Effort>,
}

/// An answer; what the call said is said back.
#[derive(JsonSchema)]
struct ResponseAnswer {
    id: String,
    object: String,
    created_at: u64,
    completed_at: Option<u64>,
    status: String,
    error: Option<ResponseError>,
    incomplete_details: Option<BTreeMap<String, String>>,
    model: String,
    output: Vec<BTreeMap<String, Value>>,
    usage: Option<ResponseUsage>,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: bool,
}

#[derive(JsonSchema)]
struct ResponseError {
    code: String,
    message: String,
}

#[derive(JsonSchema)]
struct ResponseUsage {
    input_tokens: u32,
    input_tokens_details: BTreeMap<String, u32>,
    output_tokens: u32,
    output_tokens_details: BTreeMap<String, u32>,
    total_tokens: u32,
}
