//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field, and some answers written so")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::{error::ErrorBody, reply::Generated};
use crate::{
    openai::OneOrMore,
    openapi::{Content, Operation, Schemas},
};

/// What is served in TGI's words alone.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let refusal = schemas.written::<ErrorBody>();
    let (body, stream_body) = (schemas.read::<EitherBody>(), schemas.read::<StreamBody>());
    let array = Content::Json(schemas.written::<Vec<Generated<'static>>>());
    let info = Content::Json(schemas.written::<Info>());
    let events = Content::Events;
    let all = vec![
        Operation::post("/", "Continues a text", body, array, schemas).streaming(),
        Operation::post("/generate_stream", "Continues a text, as events", stream_body, events, schemas),
        Operation::get("/info", "About the only model that is served", info, schemas),
    ];
    all.into_iter().map(|operation| operation.refusing(refusal.clone())).collect()
}

/// A text to be continued.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct GenerateBody {
    #[schemars(flatten)]
    asked: Inputs,
    stream: Option<No>,
}

/// A text to be continued in a stream.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct StreamBody {
    #[schemars(flatten)]
    asked: Inputs,
    stream: Option<Yes>,
}

/// A text to be continued, in a stream or not.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct EitherBody {
    #[schemars(flatten)]
    asked: Inputs,
    stream: Option<bool>,
}

#[derive(JsonSchema)]
struct Inputs {
    model: Option<String>,
    inputs: String,
    parameters: Option<TgiParameters>,
}

/// `false`
#[derive(JsonSchema)]
#[schemars(extend("const" = false))]
struct No(bool);

/// `true`
#[derive(JsonSchema)]
#[schemars(extend("const" = true))]
struct Yes(bool);

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TgiParameters {
    #[schemars(range(min = 1))]
    max_new_tokens: Option<u32>,
    #[schemars(range(min = 1))]
    truncate: Option<u32>,
    details: Option<bool>,
    decoder_input_details: Option<bool>,
    return_full_text: Option<bool>,
    watermark: Option<bool>,
    grammar: Option<BTreeMap<String, Value>>,
    do_sample: Option<bool>,
    seed: Option<i64>,
    #[schemars(range(min = 0, max = 100))]
    temperature: Option<f32>,
    #[schemars(range(min = 1))]
    top_k: Option<u32>,
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f32>,
    #[schemars(range(min = 0, max = 10))]
    repetition_penalty: Option<f32>,
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f32>,
    #[schemars(range(min = 1, max = 20))]
    top_n_tokens: Option<u32>,
    #[schemars(range(min = 1, max = 128))]
    best_of: Option<u32>,
    stop: Option<OneOrMore>,
}

/// Text to be tokenized with places.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TgiTokenizeBody {
    model: Option<String>,
    inputs: String,
}

#[derive(JsonSchema)]
struct Info {
    model_id: String,
    model_sha: String,
    model_pipeline_tag: String,
    max_concurrent_requests: usize,
    max_best_of: u32,
    max_stop_sequences: usize,
    max_input_tokens: u32,
    max_total_tokens: u32,
    validation_workers: usize,
    max_client_batch_size: u32,
    router: String,
    version: String,
}
