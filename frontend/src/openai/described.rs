//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field, with limits that settings and models have")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::{
    embeddings::EmbeddingList,
    models::{ModelList, ModelWords},
    shapes::{ChatChoice, CompletionChoice, Object},
};
use crate::openapi::{Content, Operation, Schemas};

/// What is served in OpenAI's words.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let chat = Content::Json(schemas.written::<Object<'static, ChatChoice<'static>>>());
    let completion = Content::Json(schemas.written::<Object<'static, CompletionChoice<'static>>>());
    let models = Content::Json(schemas.written::<ModelList<'static>>());
    let model = Content::Json(schemas.written::<ModelWords<'static>>());
    let (chat_body, completion_body) = (schemas.read::<ChatBody>(), schemas.read::<CompletionBody>());
    let vectors = Content::Json(schemas.written::<EmbeddingList<'static>>());
    let embedding_body = schemas.read::<EmbeddingBody>();
    vec![
        Operation::post("/v1/embeddings", "Texts as vectors", embedding_body, vectors, schemas),
        Operation::post("/v1/chat/completions", "Answers a conversation", chat_body, chat, schemas)
            .streaming(),
        Operation::post("/v1/completions", "Continues texts", completion_body, completion, schemas)
            .streaming(),
        Operation::get("/v1/models", "Models that are served", models, schemas),
        Operation::get("/v1/models/{id}", "One of them", model, schemas),
    ]
}

/// A conversation to be answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ChatBody {
    model: String,
    #[schemars(length(min = 1))]
    messages: Vec<Turn>,
    #[schemars(flatten)]
    shared: Shared,
    logprobs: Option<bool>,
    #[schemars(range(max = 20))]
    top_logprobs: Option<u32>,
    reasoning_effort: Option<Effort>,
    modalities: Option<Vec<String>>,
    /// Functions that the model may call.
    tools: Option<Vec<BTreeMap<String, Value>>>,
    /// A word, or the name of a function.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    verbosity: Option<String>,
    echo: Option<bool>,
    add_special_tokens: Option<bool>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
    separate_reasoning: Option<bool>,
    stream_reasoning: Option<bool>,
    include_reasoning: Option<bool>,
    /// Variables of the model's template.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
}

/// Texts to be continued.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CompletionBody {
    model: String,
    prompt: Prompts,
    #[schemars(flatten)]
    shared: Shared,
    #[schemars(range(max = 20))]
    logprobs: Option<u32>,
    #[schemars(range(min = 1, max = 128))]
    best_of: Option<u32>,
    echo: Option<bool>,
    add_special_tokens: Option<bool>,
}

/// Texts to become vectors.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct EmbeddingBody {
    model: String,
    input: Prompts,
    encoding_format: Option<EncodingFormat>,
    add_special_tokens: Option<bool>,
    /// -1: to what fits.
    #[schemars(range(min = -1))]
    truncate_prompt_tokens: Option<i64>,
    /// Not read.
    user: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

/// What both calls may hold: OpenAI's parameters and vLLM's.
#[derive(JsonSchema)]
pub struct Shared {
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<StreamOptions>,
    /// 0 only in completions with `echo`.
    max_completion_tokens: Option<u32>,
    /// 0 only in completions with `echo`.
    max_tokens: Option<u32>,
    min_tokens: Option<u32>,
    #[schemars(range(min = 1, max = 128))]
    n: Option<u32>,
    seed: Option<i64>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f32>,
    /// -1 or 0: all.
    #[schemars(range(min = -1))]
    top_k: Option<i64>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f32>,
    #[schemars(range(min = 0, max = 10))]
    repetition_penalty: Option<f32>,
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f32>,
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f32>,
    /// Not with `stream`.
    #[schemars(range(max = 20))]
    prompt_logprobs: Option<u32>,
    /// By token id, -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
    response_format: Option<BTreeMap<String, Value>>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_grammar: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_decoding_backend: Option<String>,
    structured_outputs: Option<BTreeMap<String, Value>>,
    stop: Option<OneOrMore>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    /// The same.
    no_stop_trim: Option<bool>,
    ignore_eos: Option<bool>,
    skip_special_tokens: Option<bool>,
    /// -1: to what fits.
    #[schemars(range(min = -1))]
    truncate_prompt_tokens: Option<i64>,
    /// Not read.
    user: Option<String>,
    /// Not read.
    safety_identifier: Option<String>,
    /// Not read.
    metadata: Option<BTreeMap<String, Value>>,
    store: Option<bool>,
    service_tier: Option<String>,
    use_beam_search: Option<bool>,
    length_penalty: Option<f32>,
    spaces_between_special_tokens: Option<bool>,
    bad_words: Option<Vec<String>>,
    return_hidden_states: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// A message of a conversation.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Turn {
    Said(ChatTurn),
    Answered(AssistantTurn),
    Returned(ToolTurn),
}

/// What somebody says.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ChatTurn {
    role: ChatRole,
    content: Text,
}

/// An earlier answer.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AssistantTurn {
    role: AssistantRole,
    /// Needed without calls.
    content: Option<Text>,
    tool_calls: Option<Vec<BTreeMap<String, Value>>>,
    /// Thoughts, by either name.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    annotations: Option<Vec<Value>>,
}

/// What a call of a tool gave.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ToolTurn {
    role: ToolRole,
    content: Text,
    tool_call_id: String,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum AssistantRole {
    Assistant,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum ToolRole {
    Tool,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
}

/// A string, or parts of text.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum Text {
    Whole(String),
    Parts(#[schemars(length(min = 1))] Vec<TextPart>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TextPart {
    r#type: TextType,
    text: String,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum TextType {
    Text,
}

/// A string or strings.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// A text, texts, tokens, or arrays of tokens.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Prompts {
    Text(String),
    Texts(#[schemars(length(min = 1))] Vec<String>),
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    ManyTokens(#[schemars(length(min = 1))] Vec<Vec<u32>>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}
