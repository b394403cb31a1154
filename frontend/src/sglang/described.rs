//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field, and some answers written so")]

use schemars::JsonSchema;

use super::reply::Answer;
use crate::{
    openai::OneOrMore,
    openapi::{Content, Operation, Schemas},
};

/// What is served in SGLang's words alone.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut get = |path, summary| {
        let info = Content::Json(schemas.written::<ModelInfo>());
        Operation::get(path, summary, info, schemas)
    };
    let mut all = vec![
        get("/get_model_info", "About the only model that is served"),
        get("/model_info", "About the only model that is served"),
    ];
    let answer = Content::Json(schemas.written::<Answer<'static>>());
    let said = Content::Text("text/plain");
    let forgets = "Forgets what prefix caches hold; refused with 403 where callers have API keys";
    all.push(Operation::act("/flush_cache", forgets, said, schemas));
    all.push(Operation::get("/health_generate", "Whether a token comes out", answer, schemas));
    all
}

/// Texts or tokens to be continued.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SglangBody {
    model: Option<String>,
    text: Option<OneOrMore>,
    input_ids: Option<Tokens>,
    return_logprob: Option<bool>,
    #[schemars(range(max = 20))]
    top_logprobs_num: Option<u32>,
    /// From which of the prompt's tokens on log-probabilities are told; -1: of the answer alone.
    /// Only with `return_logprob`, and not with `stream`.
    #[schemars(range(min = -1))]
    logprob_start_len: Option<i64>,
    return_text_in_logprobs: Option<bool>,
    stream: Option<bool>,
    rid: Option<String>,
    sampling_params: Option<SamplingParams>,
}

/// Tokens of one prompt or of several.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "PromptTokens")]
enum Tokens {
    One(Vec<u32>),
    More(Vec<Vec<u32>>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SamplingParams {
    max_new_tokens: Option<u32>,
    min_new_tokens: Option<u32>,
    sampling_seed: Option<i64>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f32>,
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
    #[schemars(range(min = 1, max = 128))]
    n: Option<u32>,
    stop: Option<OneOrMore>,
    stop_token_ids: Option<Vec<u32>>,
    stop_regex: Option<OneOrMore>,
    /// A schema, as text.
    json_schema: Option<String>,
    regex: Option<String>,
    /// In Lark's words.
    ebnf: Option<String>,
    ignore_eos: Option<bool>,
    skip_special_tokens: Option<bool>,
    spaces_between_special_tokens: Option<bool>,
    no_stop_trim: Option<bool>,
}

#[derive(JsonSchema)]
struct ModelInfo {
    model_path: String,
    tokenizer_path: String,
    is_generation: bool,
    preferred_sampling_params: Option<String>,
    weight_version: String,
}
